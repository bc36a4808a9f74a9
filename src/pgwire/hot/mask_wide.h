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

MASK_INLINE mask_v16 mask_digits(mask_v16 v) { return (mask_v16)(v - '0' < mask_every(10)); }

/* Digits and the separators of a formatted number: - . / lie before the digits, ( and ) differ in one bit. */
MASK_INLINE mask_v16 mask_number(mask_v16 v) {
    return (mask_v16)(v - '-' < mask_every('9' - '-' + 1)) | (mask_v16)((v & mask_every(0xFE)) == mask_every('('))
           | (mask_v16)(v == mask_every(' ')) | (mask_v16)(v == mask_every('+'));
}

/* Stars at the places from .. to - 1; only digits become stars where every is 0. */
MASK_INLINE void mask_stars(uint8_t *out, const mask_v16 *v, int parts, size_t from, size_t to, int every) {
    const mask_v16 places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < parts; i++) {
        mask_v16 star = (mask_v16)(places + (uint8_t)(16 * i - from) < mask_every((uint8_t)(to - from)));
        if (!every) star &= mask_digits(v[i]);
        mask_store(out + 16 * i, (v[i] & ~star) | (star & mask_every('*')));
    }
}

MASK_INLINE int mask_keep_parts(const uint8_t *p, size_t n, uint8_t *out, size_t keep, int first, int parts) {
    const uint64_t all = mask_below(n);
    uint64_t digits = 0, number = 0, high = 0, left;
    mask_v16 v[4];
    size_t i, from = 0, to = n;
    for (int part = 0; part < parts; part++) {
        v[part] = mask_load(p + 16 * part);
        high |= mask_bits(v[part]) << 16 * part;
        digits |= mask_bits(mask_digits(v[part])) << 16 * part;
    }
    if (high & all) return 0;
    digits &= all;
    if (digits != 0 && digits != all) {
        for (int part = 0; part < parts; part++) number |= mask_bits(mask_number(v[part])) << 16 * part;
        if ((number & all) == all) {
            left = digits; /* what is hidden, if anything is shown at all */
            for (i = 0; i < keep && left; i++) left &= first ? left - 1 : ~((uint64_t)1 << 63 >> __builtin_clzll(left));
            if (left && first) from = (size_t)__builtin_ctzll(left);
            if (left && !first) to = 64 - (size_t)__builtin_clzll(left);
            mask_stars(out, v, parts, from, to, 0);
            return 1;
        }
    }
    if (keep < n && first) from = keep;
    if (keep < n && !first) to = n - keep;
    mask_stars(out, v, parts, from, to, 1);
    return 1;
}

/* keep_first and keep_last of 1 <= n <= 64 bytes: answers 0 and has written nothing when they are not ASCII. Wide.
 * In a formatted number, digits and separators only, the separators stay and don't count. */
MASK_INLINE int mask_keep_wide(const uint8_t *p, size_t n, uint8_t *out, size_t keep, int first) {
    if (n <= 16) return mask_keep_parts(p, n, out, keep, first, 1);
    if (n <= 32) return mask_keep_parts(p, n, out, keep, first, 2);
    return mask_keep_parts(p, n, out, keep, first, 4);
}

MASK_INLINE int mask_email_parts(const uint8_t *p, size_t n, uint8_t *out, int parts) {
    const uint64_t all = mask_below(n);
    uint64_t ats = 0, dots = 0, letters = 0, bad = 0, high = 0, label;
    size_t local, head, last, j;
    for (int part = 0; part < parts; part++) {
        mask_v16 v = mask_load(p + 16 * part);
        high |= mask_bits(v) << 16 * part;
        ats |= mask_bits((mask_v16)(v == mask_every('@'))) << 16 * part;
        dots |= mask_bits((mask_v16)(v == mask_every('.'))) << 16 * part;
        letters |= mask_bits((mask_v16)((v | mask_every(0x20)) - 'a' < mask_every(26))) << 16 * part;
        bad |= mask_bits((mask_v16)(v < mask_every(0x21)) | (mask_v16)(v == mask_every(0x7F))) << 16 * part;
    }
    if (high & all) return -1;
    ats &= all;
    if ((bad & all) != 0 || ats == 0 || (ats & (ats - 1)) != 0) return 0;
    local = (size_t)__builtin_ctzll(ats);
    dots &= all & ~mask_below(local + 1);
    head = (dots ? (size_t)__builtin_ctzll(dots) : n) - local - 1;
    if (local == 0 || head == 0 || dots >> (n - 1)) return 0;
    out[0] = p[0];
    j = local > 1;
    memcpy(out + j, "***@", 4);
    out[j + 4] = p[local + 1];
    j += 4 + (head > 1);
    memcpy(out + j, "***.***", 7);
    if (dots == 0) return (int)j + 3;
    last = 64 - (size_t)__builtin_clzll(dots);
    label = all & ~mask_below(last);
    if (n - last < 2 || n - last > 6 || (letters & label) != label) return (int)j + 7;
    memcpy(out + j + 4, p + last, 8);
    return (int)(j + 4 + n - last);
}

/* The form of an address, 1 <= n <= 64 bytes: its length, 0 for what is no address, -1 when it is not ASCII; nothing
 * then counts as written. Wide. */
MASK_INLINE int mask_email_wide(const uint8_t *p, size_t n, uint8_t *out) {
    if (n <= 16) return mask_email_parts(p, n, out, 1);
    if (n <= 32) return mask_email_parts(p, n, out, 2);
    return mask_email_parts(p, n, out, 4);
}

#endif
