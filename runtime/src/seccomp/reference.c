/*
 * What libseccomp makes of a profile, for the comparison with our compiler: profiles come in on standard input as words, and
 * filters go out, an instruction a line. The calls are those that runc makes.
 *
 *   profile ARCHITECTURE DEFAULT COUNT ARCHITECTURE… RULES
 *     rule ACTION NAMES NAME… CONDITIONS { INDEX OPERATOR VALUE VALUE }…
 *   lookup ARCHITECTURE NAME
 *
 * Architectures are AUDIT_ARCH_* and actions SECCOMP_RET_* numbers; x32 is its bit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char word[256];

static const char *next(void)
{
	if (scanf("%255s", word) != 1)
		exit(0);
	return word;
}

static uint64_t number(void)
{
	return strtoull(next(), 0, 0);
}

static uint32_t architecture(void)
{
	uint32_t token = number();
	return token == 0x40000000 ? SCMP_ARCH_X32 : token;
}

/* The filter's bytes, by way of a file in memory. */
static void print(scmp_filter_ctx filter)
{
	struct sock_filter instruction;
	int file = memfd_create("filter", 0);
	int failed = seccomp_export_bpf(filter, file);
	printf("filter %d %ld\n", failed, (long)lseek(file, 0, SEEK_END) / 8);
	lseek(file, 0, SEEK_SET);
	while (read(file, &instruction, sizeof instruction) == sizeof instruction)
		printf("%u %u %u %u\n", instruction.code, instruction.jt, instruction.jf, instruction.k);
	close(file);
}

static int rule(scmp_filter_ctx filter, uint32_t otherwise)
{
	static int calls[512];
	struct scmp_arg_cmp conditions[16];
	int failed = 0, repeated = 0;
	next();
	uint32_t action = number();
	unsigned known = 0, names = number();
	for (unsigned i = 0; i < names; i++) {
		int call = seccomp_syscall_resolve_name(next());
		if (call != __NR_SCMP_ERROR)
			calls[known++] = call;
	}
	unsigned count = number();
	for (unsigned i = 0; i < count; i++) {
		conditions[i].arg = number();
		conditions[i].op = number();
		conditions[i].datum_a = number();
		conditions[i].datum_b = number();
		for (unsigned before = 0; before < i; before++)
			repeated |= conditions[before].arg == conditions[i].arg;
	}
	if (action == otherwise)
		return 0;
	for (unsigned i = 0; i < known; i++) {
		if (!repeated) {
			failed |= seccomp_rule_add_array(filter, action, calls[i], count, conditions);
			continue;
		}
		for (unsigned one = 0; one < count; one++)
			failed |= seccomp_rule_add_array(filter, action, calls[i], 1, &conditions[one]);
	}
	return failed;
}

static void profile(void)
{
	int failed = 0;
	uint32_t machine = architecture(), otherwise = number();
	scmp_filter_ctx filter = seccomp_init(otherwise);
	if (machine != seccomp_arch_native()) {
		failed |= seccomp_arch_add(filter, machine);
		failed |= seccomp_arch_remove(filter, SCMP_ARCH_NATIVE);
	}
	for (unsigned count = number(); count > 0; count--) {
		int added = seccomp_arch_add(filter, architecture());
		failed |= added == -EEXIST ? 0 : added;
	}
	for (unsigned rules = number(); rules > 0; rules--)
		failed |= rule(filter, otherwise);
	printf("profile %d\n", failed);
	print(filter);
	seccomp_release(filter);
}

int main(void)
{
	for (;;) {
		if (!strcmp(next(), "profile")) {
			profile();
		} else {
			uint32_t machine = architecture();
			printf("%d\n", seccomp_syscall_resolve_name_arch(machine, next()));
		}
	}
}
