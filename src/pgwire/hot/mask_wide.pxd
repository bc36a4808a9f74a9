# The C of mask_wide.h. Header only. Never add: a function that is not there.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "mask_wide.h" nogil:
    enum:
        MASK_SLACK            # what a wide function may read and write behind its cell, and one byte
    void mask_copy(uint8_t* to, const uint8_t* src, size_t n)
    void mask_letters(uint8_t* to, uint64_t bits)
    bint mask_keep_wide(const uint8_t* p, size_t n, uint8_t* out, size_t keep, bint first)
    int mask_email_wide(const uint8_t* p, size_t n, uint8_t* out)
