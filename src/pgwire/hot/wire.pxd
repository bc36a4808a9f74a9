# Reading and writing big-endian integers in wire bytes. Header only: everything here is inlined.
# Never add: anything that allocates, or that reads without its caller having checked the length.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef inline uint16_t load16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((<uint16_t>p[0] << 8) | p[1])

cdef inline uint32_t load32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]

cdef inline void store32(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v

cdef inline uint64_t mix64(uint64_t h, uint64_t v) noexcept nogil:
    h ^= v
    h *= <uint64_t>0x9E3779B97F4A7C15
    h ^= h >> 29
    h *= <uint64_t>0xBF58476D1CE4E5B9
    return h ^ (h >> 32)

cdef inline uint64_t hash_bytes(uint64_t seed, const uint8_t* p, size_t n) noexcept nogil:
    # Eight bytes at a time; equality is always decided by comparing the whole key, so collisions only cost time.
    cdef uint64_t h = seed ^ <uint64_t>n
    cdef uint64_t w
    while n >= 8:
        memcpy(&w, p, 8)
        h = mix64(h, w)
        p += 8
        n -= 8
    if n:
        w = 0
        memcpy(&w, p, n)
        h = mix64(h, w)
    return h
