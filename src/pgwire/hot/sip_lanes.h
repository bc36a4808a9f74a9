/* Text pseudonyms four at a time: SipHash-2-4-128 in the four lanes of AVX2, where the machine has it.
 *
 * A pseudonym's length is known before it is made, so it may be written later, when four have come together.
 * Never add: another hash, or anything that would differ from sip.pxd and mask_token.
 */
#ifndef PGLEASH_SIP_LANES_H
#define PGLEASH_SIP_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES_MOST 63 /* bytes of a value that may wait here */

typedef struct {
    int count;
    uint8_t *out[4];
    uint64_t words[4]; /* whole words of the value; one more holds the rest and the length */
    uint64_t k0[4], k1[4];
    uint64_t value[8][4]; /* word by word */
} Lanes;

#if defined(__x86_64__) && !defined(PGLEASH_PORTABLE)
#include <immintrin.h>

static int lanes_here(void) { return __builtin_cpu_supports("avx2") != 0; }

/* Word by word: a wide load of what narrow stores have just written would wait for them. */
#define LANES_LOAD(a) _mm256_set_epi64x((int64_t)(a)[3], (int64_t)(a)[2], (int64_t)(a)[1], (int64_t)(a)[0])
#define LANES_ROTL(x, b) _mm256_or_si256(_mm256_slli_epi64(x, b), _mm256_srli_epi64(x, 64 - (b)))
#define LANES_HALVES(x) _mm256_shuffle_epi32(x, 0xB1)
#define LANES_ROUND                                          \
    v0 = _mm256_add_epi64(v0, v1);                           \
    v2 = _mm256_add_epi64(v2, v3);                           \
    v1 = _mm256_xor_si256(LANES_ROTL(v1, 13), v0);           \
    v3 = _mm256_xor_si256(_mm256_shuffle_epi8(v3, by16), v2); \
    v0 = _mm256_add_epi64(LANES_HALVES(v0), v3);             \
    v2 = _mm256_add_epi64(v2, v1);                           \
    v3 = _mm256_xor_si256(LANES_ROTL(v3, 21), v0);           \
    v1 = _mm256_xor_si256(LANES_ROTL(v1, 17), v2);           \
    v2 = LANES_HALVES(v2);

/* mask_letters for each lane */
__attribute__((target("avx2"))) static inline __m256i lanes_letters(__m256i x) {
    const __m256i low20 = _mm256_set1_epi64x(0xFFFFF), low10 = _mm256_set1_epi32(0x3FF), low5 = _mm256_set1_epi16(0x1F);
    x = _mm256_or_si256(_mm256_and_si256(x, low20), _mm256_slli_epi64(_mm256_and_si256(_mm256_srli_epi64(x, 20), low20), 32));
    x = _mm256_or_si256(_mm256_and_si256(x, low10), _mm256_slli_epi32(_mm256_and_si256(_mm256_srli_epi32(x, 10), low10), 16));
    x = _mm256_or_si256(_mm256_and_si256(x, low5), _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(x, 5), low5), 8));
    __m256i digit = _mm256_cmpgt_epi8(x, _mm256_set1_epi8(25));
    x = _mm256_add_epi8(x, _mm256_set1_epi8('a'));
    return _mm256_sub_epi8(x, _mm256_and_si256(digit, _mm256_set1_epi8('a' + 26 - '2')));
}

/* Writes what waits. */
__attribute__((target("avx2"))) static void lanes_flush(Lanes *l) {
    const __m256i by16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, 7, 0, 1, 2, 3, 4, 5, 14, 15, 8, 9, 10, 11, 12, 13));
    const __m256i k0 = LANES_LOAD(l->k0), k1 = LANES_LOAD(l->k1);
    __m256i v0 = _mm256_xor_si256(k0, _mm256_set1_epi64x(0x736f6d6570736575));
    __m256i v1 = _mm256_xor_si256(k1, _mm256_set1_epi64x(0x646f72616e646f6d ^ 0xee));
    __m256i v2 = _mm256_xor_si256(k0, _mm256_set1_epi64x(0x6c7967656e657261));
    __m256i v3 = _mm256_xor_si256(k1, _mm256_set1_epi64x(0x7465646279746573));
    __m256i words;
    uint64_t most = 0, made[2][4];
    int i;
    for (i = l->count; i < 4; i++) l->words[i] = 0, l->value[0][i] = 0;
    for (i = 0; i < 4; i++) most = l->words[i] > most ? l->words[i] : most;
    words = LANES_LOAD(l->words);
    for (uint64_t s = 0; s <= most; s++) {
        const __m256i m = LANES_LOAD(l->value[s]);
        const __m256i over = _mm256_cmpgt_epi64(_mm256_set1_epi64x((int64_t)s), words); /* lanes that have ended */
        const __m256i o0 = v0, o1 = v1, o2 = v2, o3 = v3;
        v3 = _mm256_xor_si256(v3, m);
        LANES_ROUND LANES_ROUND
        v0 = _mm256_blendv_epi8(_mm256_xor_si256(v0, m), o0, over);
        v1 = _mm256_blendv_epi8(v1, o1, over);
        v2 = _mm256_blendv_epi8(v2, o2, over);
        v3 = _mm256_blendv_epi8(v3, o3, over);
    }
    v2 = _mm256_xor_si256(v2, _mm256_set1_epi64x(0xee));
    LANES_ROUND LANES_ROUND LANES_ROUND LANES_ROUND
    _mm256_storeu_si256((__m256i *)made[0], lanes_letters(_mm256_xor_si256(_mm256_xor_si256(v0, v1), _mm256_xor_si256(v2, v3))));
    v1 = _mm256_xor_si256(v1, _mm256_set1_epi64x(0xdd));
    LANES_ROUND LANES_ROUND LANES_ROUND LANES_ROUND
    _mm256_storeu_si256((__m256i *)made[1], lanes_letters(_mm256_xor_si256(_mm256_xor_si256(v0, v1), _mm256_xor_si256(v2, v3))));
    for (i = 0; i < l->count; i++) {
        memcpy(l->out[i], "p_", 2);
        memcpy(l->out[i] + 2, &made[0][i], 8);
        memcpy(l->out[i] + 10, &made[1][i], 8);
    }
    l->count = 0;
}

/* The value p[0:n] gets its pseudonym of 18 bytes at `out` now or with the next flush; n <= LANES_MOST. Reads 64 bytes. */
static inline void lanes_add(Lanes *l, const uint8_t *p, size_t n, uint8_t *out, uint64_t k0, uint64_t k1) {
    const int i = l->count;
    const size_t words = n >> 3;
    uint64_t w[4];
    memcpy(w, p, 32);
    for (int s = 0; s < 4; s++) l->value[s][i] = w[s];
    if (words > 3)
        for (size_t s = 4; s <= words; s++) memcpy(&l->value[s][i], p + 8 * s, 8);
    memcpy(w, p + 8 * words, 8);
    l->value[words][i] = (w[0] & (((uint64_t)1 << 8 * (n & 7)) - 1)) | (uint64_t)n << 56;
    l->words[i] = words;
    l->out[i] = out;
    l->k0[i] = k0;
    l->k1[i] = k1;
    l->count = i + 1;
    if (i == 3) lanes_flush(l);
}

#else

static int lanes_here(void) { return 0; }
static inline void lanes_flush(Lanes *l) { (void)l; }
static inline void lanes_add(Lanes *l, const uint8_t *p, size_t n, uint8_t *out, uint64_t k0, uint64_t k1) {
    (void)l, (void)p, (void)n, (void)out, (void)k0, (void)k1;
}

#endif
#endif
