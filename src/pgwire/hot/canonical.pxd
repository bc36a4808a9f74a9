# The canonical form of a statement: its text with each literal replaced by one byte that tells its class.
from libc.stdint cimport uint8_t

cdef enum:
    INT4_MARK = 1             # an integer that fits int4
    INT8_MARK = 2             # one that fits int8 only
    NUMERIC_MARK = 3          # a decimal, an exponent, or a bigger integer
    STRING_MARK = 4           # '', E'' or dollar-quoted
    LONGEST = 8192            # bytes of a statement; longer ones are declined

# Writes at most n bytes to out (a form is never longer than its text); -1: declined, or cap is too small.
cdef ssize_t canonical_form(const uint8_t* text, size_t n, uint8_t* out, size_t cap) noexcept nogil
