/* Fail the n-th allocation that certain shared objects ask for. For LD_PRELOAD; glibc only.
 *
 *   $KVPS_MALLOC_OF     part of the path of the objects whose calls of malloc, calloc and realloc count ("/kvps/_")
 *   $KVPS_MALLOC_AT     number of the call that returns NULL, from 1 on; 0: none, they are counted only
 *   $KVPS_MALLOC_EVER   "1": so do all calls after it
 *   $KVPS_MALLOC_FILE   where the number of calls is written at the end of the process
 *
 * Who calls is told by the return address. Objects come and go rarely, so what an address belongs to is looked up once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static const char *of;
static long at, ever;
static atomic_long calls;

/* Known addresses: the address with its lowest bit set where its calls count. Two threads that write one entry at a time
 * write whole words, each of them true. */
static _Atomic uintptr_t known[4096];

__attribute__((constructor)) static void begin(void) {
  const char *value = getenv("KVPS_MALLOC_AT");
  at = value ? atol(value) : 0;
  value = getenv("KVPS_MALLOC_EVER");
  ever = value && *value == '1';
  of = getenv("KVPS_MALLOC_OF");
}

__attribute__((destructor)) static void end(void) {
  const char *path = getenv("KVPS_MALLOC_FILE");
  FILE *out = path ? fopen(path, "w") : NULL;
  if (out) {
    fprintf(out, "%ld\n", atomic_load(&calls));
    fclose(out);
  }
}

static int counts(uintptr_t address) {
  _Atomic uintptr_t *entry = &known[(address >> 2) % 4096];
  uintptr_t seen = atomic_load(entry);
  if (seen >> 1 != address) {
    Dl_info info;
    int ours = dladdr((void *)address, &info) && info.dli_fname && strstr(info.dli_fname, of);
    seen = address << 1 | ours;
    atomic_store(entry, seen);
  }
  return seen & 1;
}

static int fails(void *address) {
  if (!of || !counts((uintptr_t)address)) return 0;
  long n = atomic_fetch_add(&calls, 1) + 1;
  return at && (n == at || (ever && n > at));
}

void *malloc(size_t n) {
  if (fails(__builtin_return_address(0))) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
  if (fails(__builtin_return_address(0))) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n) {
  if (fails(__builtin_return_address(0))) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_realloc(p, n);
}
