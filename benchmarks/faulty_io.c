/* Faults of file systems, for programs that start with this library in LD_PRELOAD.

   FAULT        eio: a read fails; garbage: a read gives other bytes; enolck: no lock can be taken
   FAULT_NAME   only for files whose path contains this
   FAULT_RATE   how many of a million reads
   FAULT_AT     or which read, counted from 1 when this is set, and only this one
   FAULT_SEED   which reads fail at a rate; by default, other ones in each process

   gcc -shared -fPIC -o faulty_io.so faulty_io.c -ldl */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static unsigned long reads, chosen, state;

static int has(const char *fault, int descriptor) {
    const char *wanted = getenv("FAULT"), *name = getenv("FAULT_NAME");
    char link[64], path[4096];
    if (!wanted || !name || strcmp(wanted, fault)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, name) != NULL;
}

static int strikes(void) {
    const char *at = getenv("FAULT_AT"), *rate = getenv("FAULT_RATE");
    if (at) {
        unsigned long which = strtoul(at, NULL, 10);
        if (which != chosen) chosen = which, reads = 0; /* the program has chosen another one */
        return ++reads == which;
    }
    if (!state) {
        const char *seed = getenv("FAULT_SEED");
        unsigned long number = seed ? strtoul(seed, NULL, 10) : (unsigned long)getpid();
        state = 88172645463325252ul ^ (number << 20);
    }
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return rate && state % 1000000 < strtoul(rate, NULL, 10);
}

ssize_t pread64(int descriptor, void *buffer, size_t size, off64_t offset) {
    ssize_t (*next)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    if (has("eio", descriptor) && strikes()) {
        errno = EIO;
        return -1;
    }
    ssize_t got = next(descriptor, buffer, size, offset);
    if (got > 0 && has("garbage", descriptor) && strikes()) memset(buffer, 0x5a, got);
    return got;
}

ssize_t pread(int descriptor, void *buffer, size_t size, off_t offset) {
    return pread64(descriptor, buffer, size, offset);
}

int fcntl64(int descriptor, int command, ...) {
    int (*next)(int, int, void *) = dlsym(RTLD_NEXT, "fcntl64");
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int locks = command == F_SETLK || command == F_SETLKW;
    if (locks && has("enolck", descriptor)) {
        errno = ENOLCK;
        return -1;
    }
    return next(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(descriptor, command, argument);
}

int flock(int descriptor, int operation) {
    int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
    if (has("enolck", descriptor)) {
        errno = ENOLCK;
        return -1;
    }
    return next(descriptor, operation);
}
