/*
 * The least a container can cost: the kernel's own work for the default bundle of `runc spec`, and
 * nothing else. No configuration is read, nothing is checked, no state is kept, every result is
 * ignored but the last. `hack/bench.sh` prints it beside the runtimes.
 *
 * Run in a bundle directory, with a static busybox as rootfs/bin/true. Every cgroup hierarchy
 * below /sys/fs/cgroup gets a cgroup, as a runtime would make it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const hierarchies[] = {
	"/cpu", "/cpuacct", "/cpuset", "/memory", "/devices", "/freezer",
	"/blkio", "/pids", "/systemd", "/unified", "", NULL,
};

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		perror(path);
	close(fd);
}

/* The path of a file of this run's cgroup, or NULL where the hierarchy is not there. */
static const char *cgroup(const char *hierarchy, const char *file)
{
	static char path[256];
	snprintf(path, sizeof path, "/sys/fs/cgroup%s/cgroup.procs", hierarchy);
	if (access(path, W_OK))
		return NULL;
	snprintf(path, sizeof path, "/sys/fs/cgroup%s/floor%s", hierarchy, file);
	return path;
}

static void join_cgroups(pid_t pid)
{
	char text[16];
	snprintf(text, sizeof text, "%d", pid);
	for (int i = 0; hierarchies[i]; i++) {
		const char *at = hierarchies[i];
		if (!cgroup(at, ""))
			continue;
		mkdir(cgroup(at, ""), 0755);
		if (!strcmp(at, "/cpuset")) {
			put(cgroup(at, "/cpuset.cpus"), "0");
			put(cgroup(at, "/cpuset.mems"), "0");
		}
		put(cgroup(at, "/cgroup.procs"), text);
	}
}

static void fill_dev(void)
{
	static const struct { const char *path; int major, minor; } nodes[] = {
		{ "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 },
		{ "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
	};
	for (unsigned i = 0; i < sizeof nodes / sizeof nodes[0]; i++)
		mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor));
	symlink("/proc/self/fd", "dev/fd");
	symlink("/proc/self/fd/0", "dev/stdin");
	symlink("/proc/self/fd/1", "dev/stdout");
	symlink("/proc/self/fd/2", "dev/stderr");
	symlink("pts/ptmx", "dev/ptmx");
}

static void mount_all(void)
{
	const unsigned long quiet = MS_NOSUID | MS_NOEXEC | MS_NODEV;
	mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	mount("rootfs", "rootfs", NULL, MS_BIND | MS_REC, NULL);
	chdir("rootfs");
	mount("proc", "proc", "proc", 0, NULL);
	mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
	mkdir("dev/pts", 0755);
	mkdir("dev/shm", 0755);
	mkdir("dev/mqueue", 0755);
	mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mount("shm", "dev/shm", "tmpfs", quiet, "mode=1777,size=65536k");
	mount("mqueue", "dev/mqueue", "mqueue", quiet, NULL);
	mount("sysfs", "sys", "sysfs", quiet | MS_RDONLY, NULL);
	fill_dev();
	syscall(SYS_pivot_root, ".", ".");
	umount2(".", MNT_DETACH);
	chdir("/");
}

static void hide(void)
{
	static const char *const read_only[] = {
		"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", NULL,
	};
	static const char *const masked[] = { "/proc/kcore", "/proc/keys", "/proc/timer_list", NULL };
	static const char *const emptied[] = { "/proc/acpi", "/proc/scsi", "/sys/firmware", NULL };
	for (int i = 0; read_only[i]; i++) {
		mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL);
		mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
	}
	for (int i = 0; masked[i]; i++)
		mount("/dev/null", masked[i], NULL, MS_BIND, NULL);
	for (int i = 0; emptied[i]; i++)
		mount("tmpfs", emptied[i], "tmpfs", MS_RDONLY, NULL);
	mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

int main(void)
{
	int go[2], status = 1;
	char byte = 0;
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS,
		.exit_signal = SIGCHLD,
	};
	if (pipe2(go, O_CLOEXEC))
		return 1;
	pid_t pid = syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0) {
		perror("clone3");
		return 1;
	}
	if (pid == 0) {
		char *const argv[] = { "true", NULL }, *const envp[] = { NULL };
		/* The mounts go on while the parent waits for the cgroups. */
		mount_all();
		hide();
		sethostname("floor", 5);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (read(go[0], &byte, 1) == 1) {
			unshare(CLONE_NEWCGROUP);
			execve("/bin/true", argv, envp);
		}
		_exit(127);
	}
	join_cgroups(pid);
	if (write(go[1], &byte, 1) != 1)
		perror("write");
	waitpid(pid, &status, 0);
	for (int i = 0; hierarchies[i]; i++)
		if (cgroup(hierarchies[i], ""))
			rmdir(cgroup(hierarchies[i], ""));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
