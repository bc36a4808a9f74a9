# The C of mask_wide.h and sip_lanes.h. Header only. Never add: a function that is not in them.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "mask_wide.h" nogil:
    enum:
        MASK_SLACK            # what a wide function may read and write behind its cell, and one byte
    void mask_copy(uint8_t* to, const uint8_t* src, size_t n)
    void mask_letters(uint8_t* to, uint64_t bits)
    bint mask_keep_wide(const uint8_t* p, size_t n, uint8_t* out, size_t keep, bint first)
    int mask_email_wide(const uint8_t* p, size_t n, uint8_t* out)


cdef extern from "sip_lanes.h" nogil:
    enum:
        LANES_MOST            # bytes of a value that may wait
    ctypedef struct Lanes:
        int count
    bint lanes_here()
    void lanes_add(Lanes* l, const uint8_t* p, size_t n, uint8_t* out, uint64_t k0, uint64_t k1)
    void lanes_flush(Lanes* l)
