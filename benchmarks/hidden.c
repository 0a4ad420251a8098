/* Shows a process a processor of an older class than it runs on: CPUID answers without the instructions hidden.
 *
 * Linux lets a process have its CPUID instructions trapped (arch_prctl ARCH_SET_CPUID) where the processor can: the flag
 * cpuid_fault in /proc/cpuinfo. Every library that picks its kernels by CPUID then takes those of the older class, at the
 * speed of this processor. Loaded by hidden.py with LD_PRELOAD and HIDE_BELOW=avx512|avx2|avx|sse4; HIDE_CPUINFO names the file to be
 * read in the place of /proc/cpuinfo. Children inherit both. Without HIDE_BELOW it does nothing.
 *
 *     gcc -O2 -shared -fPIC -o hidden.so hidden.c -ldl
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SSE4, AVX, AVX2, AVX512 };
static int newest = AVX512;

#define BIT(n) (1u << (n))
/* Leaf 1, ECX: FMA, F16C, AVX. Leaf 7: AVX2, AVX512*, VNNI, AMX and what builds on them. Leaf 7.1: AVX-VNNI. */
static void hide(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf == 1) {
    if (newest < AVX2) *c &= ~BIT(12);
    if (newest < AVX) *c &= ~(BIT(28) | BIT(29));
  } else if (leaf == 7 && subleaf == 0) {
    *c &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14));
    *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    if (newest < AVX512) *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    if (newest < AVX2) *b &= ~(BIT(3) | BIT(5) | BIT(8));
  } else if (leaf == 7 && subleaf == 1) {
    *a = *b = *c = *d = 0;
  }
}

static void trapped(int number, siginfo_t *info, void *context) {
  (void)number, (void)info;
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)r[REG_RIP];
  if (code[0] != 0x0f || code[1] != 0xa2) { /* a real fault: let it end the process */
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  unsigned leaf = r[REG_RAX], subleaf = r[REG_RCX], a, b, c, d;
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __cpuid_count(leaf, subleaf, a, b, c, d);
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  hide(leaf, subleaf, &a, &b, &c, &d);
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

/* Whoever installs a handler of its own for faults, as Python's faulthandler does, would miss CPUID's: ours stays. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  static int (*real)(int, const struct sigaction *, struct sigaction *);
  if (!real) real = dlsym(RTLD_NEXT, "sigaction");
  if (number == SIGSEGV && getenv("HIDE_BELOW") && action && action->sa_sigaction != trapped) action = NULL;
  return real(number, action, old);
}

__attribute__((constructor)) static void start(void) {
  static const char *const names[] = {"sse4", "avx", "avx2", "avx512"};
  const char *name = getenv("HIDE_BELOW");
  if (!name) return;
  for (int i = 0; i < 4; i++)
    if (!strcmp(name, names[i])) newest = i;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = trapped;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, NULL) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    perror("hidden.so: this processor cannot trap CPUID");
    _exit(125);
  }
}

static const char *instead(const char *path) {
  const char *shown = getenv("HIDE_CPUINFO");
  return shown && path && !strcmp(path, "/proc/cpuinfo") ? shown : path;
}

#define OPEN(name)                                                            \
  int name(const char *path, int flags, ...) {                                \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = va_arg(rest, mode_t);                                       \
    va_end(rest);                                                             \
    return syscall(SYS_openat, AT_FDCWD, instead(path), flags, mode);         \
  }
OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                           \
  FILE *name(const char *path, const char *mode) {                            \
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name);      \
    return real(instead(path), mode);                                         \
  }
FOPEN(fopen)
FOPEN(fopen64)
