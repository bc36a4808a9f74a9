# Actions on text: keep, e-mail, token. Header only. Each writes what stands for p[0:n] and answers its length.
# Never add: a result that holds more of the value than its action says, or more characters than the column may have.
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from pgwire.hot.mask_action cimport _KEEP_FIRST, Mask, mask_hash
from pgwire.hot.mask_wide cimport mask_email_wide, mask_keep_wide, mask_letters


cdef inline bint _ascii(const uint8_t* p, size_t n) noexcept nogil:
    cdef uint8_t seen = 0
    cdef size_t i
    for i in range(n):
        seen |= p[i]
    return seen < 0x80


cdef inline size_t _char(const uint8_t* p, size_t n) noexcept nogil:
    # bytes of the UTF-8 character at p (n > 0), 0 if there is none
    cdef uint8_t b = p[0]
    cdef size_t k, i
    if b < 0x80:
        return 1
    if b < 0xC2 or b > 0xF4:
        return 0
    k = 2 if b < 0xE0 else (3 if b < 0xF0 else 4)
    if k > n:
        return 0
    for i in range(1, k):
        if p[i] & 0xC0 != 0x80:
            return 0
    if (b == 0xE0 and p[1] < 0xA0) or (b == 0xED and p[1] > 0x9F) or (b == 0xF0 and p[1] < 0x90) or (b == 0xF4 and p[1] > 0x8F):
        return 0
    return k


cdef inline bint _separator(uint8_t b) noexcept nogil:
    return b == c' ' or b == c'-' or b == c'.' or b == c'/' or b == c'(' or b == c')' or b == c'+'


cdef inline bint _digit(uint8_t b) noexcept nogil:
    return c'0' <= b <= c'9'


cdef inline ssize_t _stars(Mask* m, uint8_t* out) noexcept nogil:
    # What stands for a text that can't be understood: its length is not told.
    cdef ssize_t n = 3
    if m.limit and m.limit < 3:
        n = m.limit
    memset(out, c'*', n)
    return n


cdef inline ssize_t _keep_ascii(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef size_t keep = m.argument, i, digits = 0, others = 0, seen = 0
    cdef bint first = m.op == _KEEP_FIRST
    for i in range(n):
        if _digit(p[i]):
            digits += 1
        elif not _separator(p[i]):
            others = 1
            break
    if others == 0 and digits:
        # a formatted number: separators stay and don't count
        if digits <= keep:
            keep = 0
        for i in range(n):
            if not _digit(p[i]):
                out[i] = p[i]
                continue
            out[i] = p[i] if (seen < keep if first else seen >= digits - keep) else c'*'
            seen += 1
        return n
    memset(out, c'*', n)
    if keep < n:
        if first:
            memcpy(out, p, keep)
        else:
            memcpy(out + n - keep, p + n - keep, keep)
    return n


cdef inline ssize_t _keep(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef size_t i = 0, j = 0, k, chars = 0, at = 0, keep = m.argument
    if _ascii(p, n):
        return _keep_ascii(m, p, n, out)
    while i < n:
        k = _char(p + i, n - i)
        if k == 0:
            return _stars(m, out)
        i += k
        chars += 1
    if chars <= keep:
        keep = 0
    i = 0
    while i < n:
        k = _char(p + i, n - i)
        if (at < keep) if m.op == _KEEP_FIRST else (at >= chars - keep):
            memcpy(out + j, p + i, k)
            j += k
        else:
            out[j] = c'*'
            j += 1
        at += 1
        i += k
    return j


cdef inline ssize_t mask_keep(Mask* m, const uint8_t* p, size_t n, uint8_t* out, bint wide) noexcept nogil:
    if wide and 1 <= n <= 64 and mask_keep_wide(p, n, out, m.argument, m.op == _KEEP_FIRST):
        return n
    return _keep(m, p, n, out)


cdef inline size_t _cut(Mask* m, const uint8_t* p, size_t n) noexcept nogil:
    # bytes of the first `limit` characters of a text that is valid UTF-8
    cdef size_t i = 0, chars = 0
    if m.limit == 0:
        return n
    while i < n and chars < m.limit:
        i += _char(p + i, n - i)
        chars += 1
    return i


cdef inline ssize_t mask_email(Mask* m, const uint8_t* p, size_t n, uint8_t* out, bint wide) noexcept nogil:
    cdef int made
    if wide and 1 <= n <= 64:
        made = mask_email_wide(p, n, out)
        if made >= 0:
            return _cut(m, out, made) if made else _stars(m, out)
    return _email(m, p, n, out)


cdef inline ssize_t _email(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # a***@e***.com; a part of one character shows none of it; a last label that isn't 2 to 6 letters shows none either
    cdef const uint8_t* at = <const uint8_t*>memchr(p, c'@', n)
    cdef const uint8_t* domain
    cdef const uint8_t* dot
    cdef size_t local, rest, k, i, j = 0, last, head
    if at == NULL:
        return _stars(m, out)
    local = at - p
    domain = at + 1
    rest = n - local - 1
    if local == 0 or rest == 0 or memchr(domain, c'@', rest) != NULL:
        return _stars(m, out)
    i = 0
    while i < n:
        if p[i] <= 0x20 or p[i] == 0x7F:
            return _stars(m, out)
        k = _char(p + i, n - i)
        if k == 0:
            return _stars(m, out)
        i += k
    dot = <const uint8_t*>memchr(domain, c'.', rest)
    head = dot - domain if dot != NULL else rest
    if head == 0 or domain[rest - 1] == c'.':
        return _stars(m, out)
    k = _char(p, local)
    if k < local:
        memcpy(out, p, k)
        j = k
    memcpy(out + j, b"***@", 4)
    j += 4
    k = _char(domain, head)
    if k < head:
        memcpy(out + j, domain, k)
        j += k
    memcpy(out + j, b"***", 3)
    j += 3
    if dot != NULL:
        last = rest
        while domain[last - 1] != c'.':
            last -= 1
        out[j] = c'.'
        j += 1
        k = rest - last
        for i in range(last, rest):
            if not (c'a' <= (domain[i] | 0x20) <= c'z'):
                k = 0
        if 2 <= k <= 6:
            memcpy(out + j, domain + last, k)
            j += k
        else:
            memcpy(out + j, b"***", 3)
            j += 3
    return _cut(m, out, j)


cdef inline ssize_t mask_token(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # p_ and 80 bits in base 32
    cdef uint64_t h[2]
    mask_hash(m, p, n, h)
    out[0] = c'p'
    out[1] = c'_'
    mask_letters(out + 2, h[0])
    mask_letters(out + 10, h[1])
    return m.limit if m.limit and m.limit < 18 else 18
