/* Library for LD_PRELOAD that counts the bytes a process copies with memcpy and memmove; used by
 * where_it_goes.sh. The first eight bytes of the file $COPIES.<process id> hold the sum. It does
 * not see copies by the kernel, or copies that the compiler makes inline because they are short
 * and of known length. It is slow: every thread adds to one counter. */

#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic uint64_t uncounted;
static _Atomic uint64_t *copied = &uncounted;

__attribute__((constructor)) static void open_counter(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.%d", getenv("COPIES"), (int)getpid());
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof *copied) != 0) {
        perror(path);
        exit(1);
    }
    void *place = mmap(NULL, sizeof *copied, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (place == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    copied = place;
}

void *memmove(void *to, const void *from, size_t len) {
    atomic_fetch_add_explicit(copied, len, memory_order_relaxed);
    unsigned char *out = to;
    const unsigned char *in = from;
    if (out <= in)
        for (size_t i = 0; i < len; i++) out[i] = in[i];
    else
        for (size_t i = len; i > 0; i--) out[i - 1] = in[i - 1];
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t len) {
    return memmove(to, from, len);
}
