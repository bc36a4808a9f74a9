# SipHash-2-4 with 128 bits of output (Aumasson and Bernstein). Header only: everything here is inlined.
# Never add: another hash, or what is hashed.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3
    uint64_t tail
    uint64_t length


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void _round(Sip* s) noexcept nogil:
    s.v0 += s.v1
    s.v1 = _rotl(s.v1, 13) ^ s.v0
    s.v0 = _rotl(s.v0, 32)
    s.v2 += s.v3
    s.v3 = _rotl(s.v3, 16) ^ s.v2
    s.v0 += s.v3
    s.v3 = _rotl(s.v3, 21) ^ s.v0
    s.v2 += s.v1
    s.v1 = _rotl(s.v1, 17) ^ s.v2
    s.v2 = _rotl(s.v2, 32)


cdef inline void _word(Sip* s, uint64_t m) noexcept nogil:
    s.v3 ^= m
    _round(s)
    _round(s)
    s.v0 ^= m


cdef inline void sip_start(Sip* s, uint64_t k0, uint64_t k1) noexcept nogil:
    s.v0 = k0 ^ <uint64_t>0x736f6d6570736575
    s.v1 = k1 ^ <uint64_t>0x646f72616e646f6d ^ 0xee
    s.v2 = k0 ^ <uint64_t>0x6c7967656e657261
    s.v3 = k1 ^ <uint64_t>0x7465646279746573
    s.tail = 0
    s.length = 0


cdef inline void sip_byte(Sip* s, uint8_t b) noexcept nogil:
    s.tail |= <uint64_t>b << (8 * (s.length & 7))
    s.length += 1
    if s.length & 7 == 0:
        _word(s, s.tail)
        s.tail = 0


cdef inline uint64_t _last(const uint8_t* p, size_t n, size_t before) noexcept nogil:
    # The last n < 8 bytes as a word; `before` bytes in front of them may be read
    cdef uint64_t w
    cdef uint32_t low, high
    if n == 0:
        return 0
    if before >= 8:
        memcpy(&w, p + n - 8, 8)
        return w >> (8 * (8 - n))
    if n >= 4:
        memcpy(&low, p, 4)
        memcpy(&high, p + n - 4, 4)
        return low | <uint64_t>high << (8 * (n - 4))
    return p[0] | <uint64_t>p[n >> 1] << (8 * (n >> 1)) | <uint64_t>p[n - 1] << (8 * (n - 1))


cdef inline void sip_bytes(Sip* s, const uint8_t* p, size_t n) noexcept nogil:
    # only at an 8-byte boundary: the first and only call on a started state
    cdef uint64_t w
    s.length += n
    while n >= 8:
        memcpy(&w, p, 8)          # little-endian hosts, as everywhere in this package
        _word(s, w)
        p += 8
        n -= 8
    s.tail = _last(p, n, s.length - n)


cdef inline void sip_end(Sip* s, uint64_t* out) noexcept nogil:
    _word(s, s.tail | (s.length << 56))
    s.v2 ^= 0xee
    _round(s)
    _round(s)
    _round(s)
    _round(s)
    out[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    _round(s)
    _round(s)
    _round(s)
    _round(s)
    out[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
