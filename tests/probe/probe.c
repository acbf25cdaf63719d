/*
 * What a process sees of the container it runs in, as one JSON object on stdout; then it waits for
 * its end. `differential` compares what it sees under two runtimes. It judges nothing: files of
 * /proc are passed on as they are.
 *
 *     probe PATH…        looks at these paths as well, for masked, read-only and mounted files
 *     probe hook FILE    appends the standard input and its own root directory to FILE
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static char buffer[1 << 16];
static const char *comma = "";

static void string(const char *text, size_t size)
{
	putchar('"');
	for (size_t i = 0; i < size; i++) {
		unsigned char c = text[i];
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 32 || c > 126)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

/* One member of the current object. */
static void key(const char *name)
{
	fputs(comma, stdout);
	comma = ",\n";
	string(name, strlen(name));
	putchar(':');
}

static void text(const char *name, const char *value)
{
	key(name);
	string(value, strlen(value));
}

static void number(const char *name, long value)
{
	char digits[32];
	snprintf(digits, sizeof digits, "%ld", value);
	text(name, digits);
}

/* The result of a call, or its errno. */
static void result(const char *name, long value)
{
	char digits[32];
	snprintf(digits, sizeof digits, "errno %d", errno);
	if (value < 0)
		text(name, digits);
	else
		number(name, value);
}

static void begin(const char *name)
{
	key(name);
	putchar('{');
	comma = "";
}

static void end(void)
{
	puts("}");
	comma = ",\n";
}

/* Reads all of a file, as far as the buffer goes; -1 with errno. */
static ssize_t content(const char *path)
{
	ssize_t size = 0, more;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -1;
	while ((more = read(fd, buffer + size, sizeof buffer - size)) > 0)
		size += more;
	if (more < 0)
		size = -1;
	close(fd);
	return size;
}

static void file(const char *path)
{
	ssize_t size = content(path);
	if (size < 0)
		return result(path, -1);
	key(path);
	string(buffer, size);
}

static void link_of(const char *name, const char *path)
{
	ssize_t size = readlink(path, buffer, sizeof buffer);
	if (size < 0)
		return result(name, -1);
	key(name);
	string(buffer, size);
}

/* Type, mode, owner, device numbers and, of a link, the target. */
static void describe(const char *name, const char *path)
{
	struct stat it;
	char line[512], target[256] = "";
	if (lstat(path, &it) < 0)
		return result(name, -1);
	char kind = S_ISDIR(it.st_mode) ? 'd' : S_ISCHR(it.st_mode) ? 'c' : S_ISBLK(it.st_mode) ? 'b'
		: S_ISLNK(it.st_mode) ? 'l' : S_ISFIFO(it.st_mode) ? 'p' : S_ISSOCK(it.st_mode) ? 's' : '-';
	if (kind == 'l' && readlink(path, target, sizeof target - 1) < 0)
		snprintf(target, sizeof target, "?");
	snprintf(line, sizeof line, "%c %04o %u:%u %u:%u %s", kind, it.st_mode & 07777, it.st_uid, it.st_gid,
		 major(it.st_rdev), minor(it.st_rdev), target);
	text(name, line);
}

static void each_entry(const char *directory, void (*what)(const char *, const char *), int deep)
{
	char path[512];
	struct stat it;
	DIR *entries = opendir(directory);
	struct dirent *entry;
	while (entries && (entry = readdir(entries))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (!strcmp(directory, "/proc/self/fd") && atoi(entry->d_name) == dirfd(entries))
			continue;
		snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
		what(deep ? path : entry->d_name, path);
		if (deep && !lstat(path, &it) && S_ISDIR(it.st_mode))
			each_entry(path, what, 1);
	}
	if (entries)
		closedir(entries);
}

/* A path somebody asked about: what it is, what is in it, and whether it can be written. */
static void look(const char *path)
{
	struct stat it;
	begin(path);
	describe("is", path);
	if (!stat(path, &it) && S_ISDIR(it.st_mode)) {
		char made[512];
		begin("entries");
		each_entry(path, describe, 0);
		end();
		snprintf(made, sizeof made, "%s/.made-by-probe", path);
		int fd = open(made, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		result("write", fd < 0 ? -1 : 0);
		if (fd >= 0) {
			close(fd);
			unlink(made);
		}
	} else {
		ssize_t size = content(path);
		key("read");
		if (size < 0)
			printf("\"errno %d\"", errno);
		else
			string(buffer, size < 256 ? size : 256);
		int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		result("write", fd < 0 ? -1 : 0);
		if (fd >= 0)
			close(fd);
	}
	end();
}

static const char no[] = "/no/such";

/* System calls that do nothing where they are allowed, with arguments that filters tell apart. */
static const struct call {
	const char *name;
	long number, arguments[4];
} calls[] = {
	{"acct", SYS_acct, {(long)no}},
	{"add_key", SYS_add_key, {0}},
	{"bpf", SYS_bpf, {-1}},
	{"chroot", SYS_chroot, {(long)no}},
	{"clock_settime", SYS_clock_settime, {-1}},
	{"clone3", SYS_clone3, {0}},
	{"getrandom", SYS_getrandom, {0}},
	{"io_uring_setup", SYS_io_uring_setup, {0}},
	{"keyctl", SYS_keyctl, {99}},
	{"landlock_create_ruleset", SYS_landlock_create_ruleset, {0, 0, 1}},
	{"memfd_create", SYS_memfd_create, {0}},
	{"mkdirat", SYS_mkdirat, {-1, (long)"x"}},
	{"mknodat", SYS_mknodat, {-1, (long)"x"}},
	{"mount", SYS_mount, {0, (long)no}},
	{"open_by_handle_at", SYS_open_by_handle_at, {-1}},
	{"perf_event_open", SYS_perf_event_open, {0}},
	{"personality-asked", SYS_personality, {0xffffffff}},
	{"personality-linux32", SYS_personality, {8}},
	{"pidfd_open", SYS_pidfd_open, {-1}},
	{"prctl-keepcaps", SYS_prctl, {7}},
	{"prctl-name", SYS_prctl, {16, 0}},
	{"ptrace", SYS_ptrace, {-1}},
	{"setns", SYS_setns, {-1}},
	{"socket-inet", SYS_socket, {AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0}},
	{"socket-netlink", SYS_socket, {AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0}},
	{"socket-unix", SYS_socket, {AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0}},
	{"swapon", SYS_swapon, {(long)no}},
	{"umount2", SYS_umount2, {(long)no}},
	{"unshare-0", SYS_unshare, {0}},
	{"unshare-user", SYS_unshare, {CLONE_NEWUSER}},
	{"userfaultfd", SYS_userfaultfd, {-1}},
	{"too-new", 600, {0}},
	{"too-high", 100000, {0}},
};

static void try(const struct call *call)
{
	int pipes[2], status, answer[2] = {0};
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return result(call->name, -1);
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		const long *it = call->arguments;
		errno = 0;
		answer[0] = syscall(call->number, it[0], it[1], it[2], it[3], 0, 0);
		answer[1] = errno;
		_exit(write(pipes[1], answer, sizeof answer) < 0);
	}
	close(pipes[1]);
	ssize_t size = read(pipes[0], answer, sizeof answer);
	close(pipes[0]);
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return result(call->name, -1);
	char line[32];
	if (size == sizeof answer && answer[0] >= 0)
		snprintf(line, sizeof line, "allowed");
	else if (size == sizeof answer)
		snprintf(line, sizeof line, "errno %d", answer[1]);
	else
		snprintf(line, sizeof line, "signal %d", WTERMSIG(status));
	text(call->name, line);
}

static void process(void)
{
	struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } scheduling = {0};
	unsigned long nodes[16] = {0};
	struct utsname names;
	char directory[4096], line[512];
	int mode = 0;
	uname(&names);
	text("hostname", names.nodename);
	text("domainname", names.domainname);
	text("machine", names.machine);
	if (getcwd(directory, sizeof directory))
		text("cwd", directory);
	else
		result("cwd", -1);
	describe("root", "/");
	result("personality", syscall(SYS_personality, 0xffffffff));
	long got = syscall(SYS_sched_getattr, 0, &scheduling, sizeof scheduling, 0);
	snprintf(line, sizeof line, "%ld: policy %u flags %lu nice %d priority %u", got, scheduling.policy,
		 (unsigned long)scheduling.flags, scheduling.nice, scheduling.priority);
	text("scheduler", line);
	result("ioprio", syscall(SYS_ioprio_get, 1, 0));
	result("mempolicy", syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0));
	snprintf(line, sizeof line, "%d of %lx", mode, nodes[0]);
	text("mempolicy-mode", line);
	number("leads-session", getsid(0) == getpid());
	number("leads-group", getpgid(0) == getpid());
	number("pid", getpid());
	number("parent-pid", getppid());
	long size = syscall(SYS_keyctl, 6 /* describe */, -3 /* the session's */, line, sizeof line);
	text("keyring", size > 0 && size <= (long)sizeof line ? line : "none");
}

static void terminal(void)
{
	struct termios it;
	struct winsize size = {0};
	char line[128];
	for (int fd = 0; fd < 3; fd++) {
		snprintf(line, sizeof line, "isatty-%d", fd);
		number(line, isatty(fd));
	}
	int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	result("controlling", fd < 0 ? -1 : 0);
	if (fd >= 0)
		close(fd);
	if (tcgetattr(0, &it) < 0)
		return;
	ioctl(0, TIOCGWINSZ, &size);
	snprintf(line, sizeof line, "i%x o%x c%x l%x, %d by %d", it.c_iflag, it.c_oflag, it.c_cflag, it.c_lflag,
		 size.ws_row, size.ws_col);
	text("settings", line);
	struct stat inode;
	if (!fstat(0, &inode)) {
		snprintf(line, sizeof line, "%04o %u:%u", inode.st_mode & 07777, inode.st_uid, inode.st_gid);
		text("owner", line);
	}
}

static void network(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	long it = fd < 0 ? -1 : ioctl(fd, SIOCGIFFLAGS, &request);
	result("loopback", it < 0 ? -1 : request.ifr_flags & IFF_UP);
	if (fd >= 0)
		close(fd);
	file("/proc/self/net/dev");
}

static int hook(const char *path)
{
	ssize_t size = 0, more;
	FILE *out = fopen(path, "a");
	while ((more = read(0, buffer + size, sizeof buffer - size)) > 0)
		size += more;
	if (!out)
		return 1;
	fprintf(out, "probe %d ", access("/bin/probe", X_OK));
	fwrite(buffer, 1, size, out);
	fputc('\n', out);
	return fclose(out);
}

int main(int count, char **words)
{
	static const char *const files[] = {
		"status", "limits", "mountinfo", "environ", "cmdline", "comm", "oom_score_adj", "cgroup", "uid_map", "gid_map",
		"setgroups", "timens_offsets", "timerslack_ns", "coredump_filter", "loginuid", "attr/current",
	};
	char path[64];
	if (count == 3 && !strcmp(words[1], "hook"))
		return hook(words[2]);
	putchar('{');
	begin("files");
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "/proc/self/%s", files[i]);
		file(path);
	}
	end();
	begin("process");
	process();
	end();
	begin("descriptors");
	each_entry("/proc/self/fd", link_of, 0);
	end();
	begin("namespaces");
	each_entry("/proc/self/ns", link_of, 0);
	end();
	begin("devices");
	describe("/dev", "/dev");
	each_entry("/dev", describe, 1);
	end();
	begin("terminal");
	terminal();
	end();
	begin("network");
	network();
	end();
	begin("paths");
	for (int i = 1; i < count; i++)
		look(words[i]);
	end();
	begin("calls");
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		try(&calls[i]);
	end();
	puts("}\nend");
	fflush(stdout);
	for (;;)
		pause();
}
