/* What the journal needs below Cython: CRC-32C, SHA-256, the clock, and ordered stores. Included by journal.pyx alone.
   Never add here: the layout of records. */
#ifndef PGLEASH_JOURNAL_C_H
#define PGLEASH_JOURNAL_C_H
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

/* ---- CRC-32C (Castagnoli), RFC 3720 B.4: hardware where the processor has it, a table otherwise ---- */
static uint32_t pgj_crc_table[256];
static int pgj_crc_hw = 0;

static uint32_t pgj_crc_soft(const unsigned char *p, size_t n) {
    uint32_t c = 0xFFFFFFFFu;
    while (n--) c = pgj_crc_table[(c ^ *p++) & 0xFF] ^ (c >> 8);
    return ~c;
}
#if defined(__x86_64__)
__attribute__((target("sse4.2")))
static uint32_t pgj_crc_sse(const unsigned char *p, size_t n) {
    uint64_t c = 0xFFFFFFFFu, w;
    while (n >= 8) { memcpy(&w, p, 8); c = _mm_crc32_u64(c, w); p += 8; n -= 8; }
    while (n--) c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}
#endif
static uint32_t pgj_crc32c(const unsigned char *p, size_t n) {
#if defined(__x86_64__)
    if (pgj_crc_hw) return pgj_crc_sse(p, n);
#endif
    return pgj_crc_soft(p, n);
}

/* ---- SHA-256 (FIPS 180-4): the processor's own instructions, else libcrypto's if it can be opened, else plain C ---- */
typedef struct { uint32_t h[8]; uint64_t total; unsigned char block[64]; size_t held; } pgj_sha_soft_ctx;
static const uint32_t pgj_k[64] = {
    0x428a2f98,0x71374491,0xb5c0fbcf,0xe9b5dba5,0x3956c25b,0x59f111f1,0x923f82a4,0xab1c5ed5,
    0xd807aa98,0x12835b01,0x243185be,0x550c7dc3,0x72be5d74,0x80deb1fe,0x9bdc06a7,0xc19bf174,
    0xe49b69c1,0xefbe4786,0x0fc19dc6,0x240ca1cc,0x2de92c6f,0x4a7484aa,0x5cb0a9dc,0x76f988da,
    0x983e5152,0xa831c66d,0xb00327c8,0xbf597fc7,0xc6e00bf3,0xd5a79147,0x06ca6351,0x14292967,
    0x27b70a85,0x2e1b2138,0x4d2c6dfc,0x53380d13,0x650a7354,0x766a0abb,0x81c2c92e,0x92722c85,
    0xa2bfe8a1,0xa81a664b,0xc24b8b70,0xc76c51a3,0xd192e819,0xd6990624,0xf40e3585,0x106aa070,
    0x19a4c116,0x1e376c08,0x2748774c,0x34b0bcb5,0x391c0cb3,0x4ed8aa4a,0x5b9cca4f,0x682e6ff3,
    0x748f82ee,0x78a5636f,0x84c87814,0x8cc70208,0x90befffa,0xa4506ceb,0xbef9a3f7,0xc67178f2};
#define PGJ_R(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
static void pgj_sha_block(uint32_t *h, const unsigned char *p) {
    uint32_t w[64], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
    int i;
    for (i = 0; i < 16; i++, p += 4)
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    for (; i < 64; i++)
        w[i] = (PGJ_R(w[i-2], 17) ^ PGJ_R(w[i-2], 19) ^ (w[i-2] >> 10)) + w[i-7]
             + (PGJ_R(w[i-15], 7) ^ PGJ_R(w[i-15], 18) ^ (w[i-15] >> 3)) + w[i-16];
    for (i = 0; i < 64; i++) {
        uint32_t t1 = k + (PGJ_R(e, 6) ^ PGJ_R(e, 11) ^ PGJ_R(e, 25)) + ((e & f) ^ (~e & g)) + pgj_k[i] + w[i];
        uint32_t t2 = (PGJ_R(a, 2) ^ PGJ_R(a, 13) ^ PGJ_R(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        k = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
    }
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
}
static int pgj_soft_init(void *v) {
    static const uint32_t start[8] = {0x6a09e667,0xbb67ae85,0x3c6ef372,0xa54ff53a,0x510e527f,0x9b05688c,0x1f83d9ab,0x5be0cd19};
    pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
    memcpy(s->h, start, 32); s->total = 0; s->held = 0;
    return 1;
}
static int pgj_soft_update(void *v, const void *data, size_t n) {
    pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
    const unsigned char *p = (const unsigned char *)data;
    s->total += n;
    while (n) {
        size_t take = 64 - s->held;
        if (take > n) take = n;
        memcpy(s->block + s->held, p, take);
        s->held += take; p += take; n -= take;
        if (s->held == 64) { pgj_sha_block(s->h, s->block); s->held = 0; }
    }
    return 1;
}
static int pgj_soft_final(unsigned char *out, void *v) {
    pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
    uint64_t bits = s->total * 8;
    unsigned char end[8], pad = 0x80, zero = 0;
    int i;
    for (i = 0; i < 8; i++) end[i] = (unsigned char)(bits >> (56 - 8 * i));
    pgj_soft_update(s, &pad, 1);
    while (s->held != 56) pgj_soft_update(s, &zero, 1);
    pgj_soft_update(s, end, 8);
    for (i = 0; i < 32; i++) out[i] = (unsigned char)(s->h[i / 4] >> (24 - 8 * (i % 4)));
    return 1;
}
#if defined(__x86_64__)
/* Four rounds at a time by the SHA extensions; a record is hashed between two system calls, where a library's set-up
   and wiping of its context would cost as much as the hash. */
__attribute__((target("sha,ssse3,sse4.1")))
static void pgj_sha_ni(uint32_t *h, const unsigned char *p, size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i dcba = _mm_loadu_si128((const __m128i *)h), hgfe = _mm_loadu_si128((const __m128i *)(h + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1), efgh = _mm_shuffle_epi32(hgfe, 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; blocks; blocks--, p += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4], k;
        int i;
#pragma GCC unroll 16
        for (i = 0; i < 16; i++) {
            if (i < 4)
                w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), swap);
            else
                w[i & 3] = _mm_sha256msg2_epu32(
                    _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4)),
                    w[(i + 3) & 3]);
            k = _mm_add_epi32(w[i & 3], _mm_loadu_si128((const __m128i *)(pgj_k + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0E));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    cdab = _mm_shuffle_epi32(abef, 0x1B);                    /* FEBA */
    efgh = _mm_shuffle_epi32(cdgh, 0xB1);                    /* DCHG */
    _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(cdab, efgh, 0xF0));
    _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(efgh, cdab, 8));
}
/* SHA-256(head || b), where head is shorter than a block. */
static void pgj_sha_ni_link(unsigned char *out, const unsigned char *head, size_t n, const unsigned char *b, size_t nb) {
    uint32_t h[8] = {0x6a09e667,0xbb67ae85,0x3c6ef372,0xa54ff53a,0x510e527f,0x9b05688c,0x1f83d9ab,0x5be0cd19};
    unsigned char room[128];
    uint64_t bits = (uint64_t)(n + nb) * 8;
    size_t take = nb < 64 - n ? nb : 64 - n, held = n + take, whole, size;
    int i;
    memcpy(room, head, n);
    memcpy(room + n, b, take);
    if (held == 64) {
        pgj_sha_ni(h, room, 1);
        whole = (nb - take) / 64;
        if (whole) pgj_sha_ni(h, b + take, whole);
        take += whole * 64;
        held = nb - take;
        memcpy(room, b + take, held);
    }
    size = held < 56 ? 64 : 128;
    room[held] = 0x80;
    memset(room + held + 1, 0, size - held - 9);
    for (i = 0; i < 8; i++) room[size - 8 + i] = (unsigned char)(bits >> (56 - 8 * i));
    pgj_sha_ni(h, room, size / 64);
    for (i = 0; i < 8; i++) { uint32_t v = __builtin_bswap32(h[i]); memcpy(out + 4 * i, &v, 4); }
}
static int pgj_sha_hw = 0;
#endif
static int (*pgj_sha_init)(void *) = pgj_soft_init;
static int (*pgj_sha_update)(void *, const void *, size_t) = pgj_soft_update;
static int (*pgj_sha_final)(unsigned char *, void *) = pgj_soft_final;

static const char *pgj_choose(int hardware, int library) {
    static const char *names[] = {"libcrypto.so.3", "libcrypto.so.1.1", NULL};
    uint32_t i, j, c;
#if defined(__x86_64__)
    unsigned int a, b, d;
#endif
    for (i = 0; i < 256; i++) {
        for (c = i, j = 0; j < 8; j++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
        pgj_crc_table[i] = c;
    }
    pgj_crc_hw = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    pgj_crc_hw = hardware && __builtin_cpu_supports("sse4.2");
    pgj_sha_hw = 0;
    if (hardware && __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1) {
        pgj_sha_hw = 1;
        return "the processor";
    }
#endif
    pgj_sha_init = pgj_soft_init; pgj_sha_update = pgj_soft_update; pgj_sha_final = pgj_soft_final;
    for (i = 0; library && names[i]; i++) {
        void *lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!lib) continue;
        void *init = dlsym(lib, "SHA256_Init"), *update = dlsym(lib, "SHA256_Update"), *final = dlsym(lib, "SHA256_Final");
        if (init && update && final) {
            *(void **)(&pgj_sha_init) = init; *(void **)(&pgj_sha_update) = update; *(void **)(&pgj_sha_final) = final;
            return names[i];
        }
        dlclose(lib);
    }
    return "built in";
}

/* out = SHA-256(tag || a || b); sizes in bytes. The context is larger than any library's SHA256_CTX (112 bytes). */
static void pgj_sha_link(unsigned char *out, unsigned char tag, const unsigned char *a, size_t na, const unsigned char *b, size_t nb) {
    union { uint64_t align; unsigned char room[320]; } ctx;
    unsigned char head[40];
    size_t n = 1;
    head[0] = tag;
    if (na) { memcpy(head + 1, a, na); n += na; }
#if defined(__x86_64__)
    if (pgj_sha_hw) { pgj_sha_ni_link(out, head, n, b, nb); return; }
#endif
    pgj_sha_init(&ctx); pgj_sha_update(&ctx, head, n); pgj_sha_update(&ctx, b, nb); pgj_sha_final(out, &ctx);
}

static void pgj_publish(unsigned char *where, uint32_t length) { __atomic_store_n((uint32_t *)where, length, __ATOMIC_RELEASE); }
/* Fetch the lines that the next record will be written to: fresh pages are in no cache, and the checksum would wait for them. */
static inline void pgj_ahead(const unsigned char *p, const unsigned char *end) {
    int i;
    for (i = 0; i < 6 && p < end; i++, p += 64) __builtin_prefetch(p, 1, 3);
}
static uint64_t pgj_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}
static uint64_t pgj_mono_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#define pgj_exchange(place, value) __atomic_exchange_n(&(place), (value), __ATOMIC_ACQ_REL)
#endif
