/* Wide moves and byte classes for masking: sixteen bytes at a time, in the vector types of gcc and clang, which become
 * SSE2 on x86-64 and NEON on aarch64. Little-endian hosts, as everywhere in this package.
 *
 * What is called wide reads up to MASK_SLACK - 1 bytes behind its source and writes as many behind its result. Its
 * caller has looked that they are there. Never add: a function that looks at more of a value than it is given, or
 * instructions that some x86-64 machine lacks.
 */
#ifndef PGLEASH_MASK_WIDE_H
#define PGLEASH_MASK_WIDE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) && !defined(PGLEASH_PORTABLE)
#include <emmintrin.h>
#endif

#define MASK_SLACK 64
#define MASK_INLINE static inline __attribute__((always_inline))

typedef uint8_t mask_v16 __attribute__((vector_size(16)));

MASK_INLINE mask_v16 mask_load(const uint8_t *p) {
    mask_v16 v;
    memcpy(&v, p, 16);
    return v;
}

MASK_INLINE void mask_store(uint8_t *p, mask_v16 v) { memcpy(p, &v, 16); }

MASK_INLINE mask_v16 mask_every(uint8_t b) {
    return (mask_v16){b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b};
}

/* Bit i of the answer is the highest bit of byte i. */
MASK_INLINE uint64_t mask_bits(mask_v16 v) {
#if defined(__SSE2__) && !defined(PGLEASH_PORTABLE)
    return (uint32_t)_mm_movemask_epi8((__m128i)v);
#else
    uint64_t half[2];
    memcpy(half, &v, 16);
    half[0] = (half[0] & 0x8080808080808080u) >> 7;
    half[1] = (half[1] & 0x8080808080808080u) >> 7;
    return half[0] * 0x0102040810204080u >> 56 | half[1] * 0x0102040810204080u >> 56 << 8;
#endif
}

/* n >= 1 bytes, in steps of 64. Wide. */
MASK_INLINE void mask_copy(uint8_t *to, const uint8_t *from, size_t n) {
    size_t i = 0;
    do {
        mask_v16 a = mask_load(from + i), b = mask_load(from + i + 16), c = mask_load(from + i + 32), d = mask_load(from + i + 48);
        mask_store(to + i, a);
        mask_store(to + i + 16, b);
        mask_store(to + i + 32, c);
        mask_store(to + i + 48, d);
        i += 64;
    } while (i < n);
}

/* Eight letters of base 32 from the low 40 bits, lowest bits first: a to z, then 2 to 7. */
MASK_INLINE void mask_letters(uint8_t *to, uint64_t x) {
    const uint64_t ones = 0x0101010101010101u;
    x = (x & 0xFFFFFu) | (x & 0xFFFFF00000u) << 12;
    x = (x & 0x000003FF000003FFu) | (x & 0x000FFC00000FFC00u) << 6;
    x = (x & 0x001F001F001F001Fu) | (x & 0x03E003E003E003E0u) << 3;
    x = x + 'a' * ones - ((x + (128 - 26) * ones) >> 7 & ones) * ('a' + 26 - '2');
    memcpy(to, &x, 8);
}

/* The bits below n, n <= 64. */
MASK_INLINE uint64_t mask_below(size_t n) { return n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0; }

/* keep_first and keep_last of 1 <= n <= 64 bytes: answers 0 and has written nothing when they are not ASCII. Wide.
 * In a formatted number, digits and separators only, the separators stay and don't count. */
MASK_INLINE int mask_keep_wide(const uint8_t *p, size_t n, uint8_t *out, uint32_t keep, int first) {
    static const mask_v16 places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const size_t parts = n <= 32 ? 2 : 4;
    const uint64_t all = mask_below(n);
    uint64_t digits = 0, number = 0, high = 0, left;
    mask_v16 v[4], is_digit[4], every;
    size_t i, from = 0, to = n;
    for (i = 0; i < parts; i++) {
        v[i] = mask_load(p + 16 * i);
        is_digit[i] = (mask_v16)(v[i] - '0' < mask_every(10));
        /* '-', '.', '/' lie before the digits, '(' and ')' differ in one bit */
        mask_v16 of_number = (mask_v16)(v[i] - '-' < mask_every('9' - '-' + 1)) | (mask_v16)((v[i] & mask_every(0xFE)) == mask_every('('))
                             | (mask_v16)(v[i] == mask_every(' ')) | (mask_v16)(v[i] == mask_every('+'));
        high |= mask_bits(v[i]) << 16 * i;
        digits |= mask_bits(is_digit[i]) << 16 * i;
        number |= mask_bits(of_number) << 16 * i;
    }
    if (high & all) return 0;
    digits &= all;
    every = mask_every(0xFF);
    if ((number & all) == all && digits != 0 && digits != all) {
        every = mask_every(0);
        left = digits; /* what is hidden, if anything is shown at all */
        for (i = 0; i < keep && left; i++) left &= first ? left - 1 : ~((uint64_t)1 << 63 >> __builtin_clzll(left));
        if (left && first) from = (size_t)__builtin_ctzll(left);
        if (left && !first) to = 64 - (size_t)__builtin_clzll(left);
    } else if (keep < n) {
        if (first) from = keep;
        else to = n - keep;
    }
    for (i = 0; i < parts; i++) {
        mask_v16 at = places + (uint8_t)(16 * i);
        mask_v16 star = (mask_v16)(at - (uint8_t)from < mask_every((uint8_t)(to - from))) & (is_digit[i] | every);
        mask_store(out + 16 * i, (v[i] & ~star) | (star & mask_every('*')));
    }
    return 1;
}

#endif
