"""The canonical form of a statement: texts that differ only in literals of the same class have the same one.

Each literal becomes one control byte (1 to 4, see the .pxd); everything else stays byte for byte: blanks, comments, keywords,
quoted identifiers, parameters. So equal forms mean equal token streams up to the values of literals. Control bytes in the
text are declined, so a marker stands for nothing else.

The rules are those of PostgreSQL's scanner (src/backend/parser/scan.l) for UTF-8 with standard_conforming_strings on and
backslash_quote safe_encoding. Whatever is odd or differs between PostgreSQL's versions is declined, and then the exact text
counts: string continuation, U&, B, X and N strings, hexadecimal and underscored numbers, a number with anything glued to it,
escapes by number, control bytes, invalid UTF-8, anything that does not end.

Never add: a case that is not certain. A mistake here lets a statement pass by the verdict on another one.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    SPACE = 0                 # the low four bits of a byte's entry: what begins with it
    OTHER = 1                 # operators and punctuation, byte by byte
    WORD = 2
    DIGIT = 3
    QUOTE = 4
    DOUBLE_QUOTE = 5
    DOLLAR = 6
    DOT = 7
    DASH = 8
    SLASH = 9
    KIND = 15

    GLUE = 16                 # may continue an identifier
    BAD = 32                  # a control byte
    HIGH = 64                 # not ASCII

cdef uint8_t _table[256]


def _fill():
    for byte in range(256):
        entry = OTHER
        if chr(byte) in " \t\n\r\f\v":
            entry = SPACE
        elif byte >= 128:
            entry = WORD | GLUE | HIGH
        elif byte < 32 or byte == 127:
            entry = OTHER | BAD
        elif chr(byte).isalpha() or chr(byte) == "_":
            entry = WORD | GLUE
        elif chr(byte).isdigit():
            entry = DIGIT | GLUE
        _table[byte] = entry
    _table[c"$"] = DOLLAR | GLUE
    _table[c"'"] = QUOTE
    _table[c'"'] = DOUBLE_QUOTE
    _table[c"."] = DOT
    _table[c"-"] = DASH
    _table[c"/"] = SLASH


_fill()


cdef inline const uint8_t* _quoted(const uint8_t* p, const uint8_t* end, uint8_t quote, uint8_t* seen) noexcept nogil:
    # from behind the opening quote to behind the closing one; a doubled quote is one of the text's
    while p < end:
        if p[0] == quote:
            p += 1
            if p == end or p[0] != quote:
                return p
        seen[0] |= _table[p[0]]
        p += 1
    return NULL


cdef const uint8_t* _escaped(const uint8_t* p, const uint8_t* end, uint8_t* seen) noexcept nogil:
    # an E'' string: a backslash takes the next byte with it. Escapes by number may make bytes that PostgreSQL refuses.
    cdef uint8_t c
    while p < end:
        c = p[0]
        seen[0] |= _table[c]
        p += 1
        if c == c"\\":
            if p == end:
                return NULL
            c = p[0]
            if c >= 128 or (_table[c] & KIND) == DIGIT or c == c"x" or c == c"u" or c == c"U":
                return NULL
            seen[0] |= _table[c]
            p += 1
        elif c == c"'":
            if p == end or p[0] != c"'":
                return p
            p += 1
    return NULL


cdef const uint8_t* _dollar_quoted(const uint8_t* p, const uint8_t* end, uint8_t* seen) noexcept nogil:
    # from the first $ of $tag$ to behind the second $tag$. A tag is an identifier without $.
    cdef const uint8_t* body = p + 1
    cdef size_t n
    cdef uint8_t entry
    while body < end and body[0] != c"$":
        entry = _table[body[0]]
        if not entry & GLUE or (body == p + 1 and (entry & KIND) == DIGIT):
            return NULL
        seen[0] |= entry
        body += 1
    if body == end:
        return NULL
    body += 1
    n = body - p
    while <size_t>(end - body) >= n:
        if body[0] == c"$" and memcmp(body, p, n) == 0:
            return body + n
        seen[0] |= _table[body[0]]
        body += 1
    return NULL


cdef const uint8_t* _block_comment(const uint8_t* p, const uint8_t* end, uint8_t* seen) noexcept nogil:
    # from behind the first /* to behind its */; they nest
    cdef size_t depth = 1
    while end - p >= 2:
        if p[0] == c"*" and p[1] == c"/":
            p += 2
            depth -= 1
            if depth == 0:
                return p
        elif p[0] == c"/" and p[1] == c"*":
            p += 2
            depth += 1
        else:
            seen[0] |= _table[p[0]]
            p += 1
    return NULL


cdef inline uint8_t _integer_mark(uint64_t value, size_t digits) noexcept nogil:
    # The two values that a minus sign moves to a smaller type are nobody's: 0.
    if digits > 19:
        return NUMERIC_MARK
    if value <= 2147483647U:
        return INT4_MARK
    if value == 2147483648U or value == 9223372036854775808U:
        return 0
    return INT8_MARK if value < 9223372036854775808U else NUMERIC_MARK


cdef inline const uint8_t* _number(const uint8_t* p, const uint8_t* end, uint8_t* mark) noexcept nogil:
    # 12, 12., 12.5, .5, each with an exponent or not; nothing may be glued to it
    cdef uint64_t value = 0
    cdef size_t digits = 0
    while p < end and (_table[p[0]] & KIND) == DIGIT:
        value = value * 10 + (p[0] - c"0")
        digits += digits != 0 or p[0] != c"0"
        p += 1
    mark[0] = _integer_mark(value, digits)
    if p < end and p[0] == c".":
        mark[0] = NUMERIC_MARK
        p += 1
        while p < end and (_table[p[0]] & KIND) == DIGIT:
            p += 1
    if p < end and (p[0] | 32) == c"e":
        mark[0] = NUMERIC_MARK
        p += 1
        if p < end and (p[0] == c"+" or p[0] == c"-"):
            p += 1
        if p == end or (_table[p[0]] & KIND) != DIGIT:
            return NULL
        while p < end and (_table[p[0]] & KIND) == DIGIT:
            p += 1
    if p < end and (_table[p[0]] & GLUE or p[0] == c"."):
        return NULL
    return p if mark[0] else NULL


cdef bint _utf8(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # Unicode, table 3-7: shortest forms only, no surrogates
    cdef uint8_t c, low, high
    cdef int more
    while p < end:
        c = p[0]
        p += 1
        if c < 0x80:
            continue
        if c < 0xC2 or c > 0xF4:
            return False
        more = 1 if c < 0xE0 else 2 if c < 0xF0 else 3
        if end - p < more:
            return False
        low = 0xA0 if c == 0xE0 else 0x90 if c == 0xF0 else 0x80
        high = 0x9F if c == 0xED else 0x8F if c == 0xF4 else 0xBF
        if p[0] < low or p[0] > high:
            return False
        p += 1
        more -= 1
        while more:
            if p[0] & 0xC0 != 0x80:
                return False
            p += 1
            more -= 1
    return True


cdef inline const uint8_t* _prefixed(const uint8_t* word, const uint8_t* p, const uint8_t* end, uint8_t* mark, uint8_t* seen) noexcept nogil:
    # A one-letter word directly before a quote may be the quote's prefix. Returns p where it is not.
    cdef uint8_t letter = word[0] | 32
    if p[0] == c"'":
        if letter == c"e":
            mark[0] = STRING_MARK
            return _escaped(p + 1, end, seen)
        return NULL if letter == c"b" or letter == c"x" or letter == c"n" else p
    if p[0] == c"&" and letter == c"u" and end - p > 1 and (p[1] == c"'" or p[1] == c'"'):
        return NULL
    return p


cdef ssize_t canonical_form(const uint8_t* text, size_t n, uint8_t* out, size_t cap) noexcept nogil:
    cdef const uint8_t* p = text
    cdef const uint8_t* end = text + n
    cdef const uint8_t* kept = text        # what lies between kept and begin is copied as it is
    cdef const uint8_t* begin
    cdef uint8_t* to = out
    cdef uint8_t seen = 0, entry, kind, mark
    cdef bint after_string = False         # nothing but blanks and comments since a string: a quote would continue it
    if n > LONGEST or n > cap:
        return -1
    while p < end:
        begin = p
        entry = _table[p[0]]
        kind = entry & KIND
        seen |= entry
        mark = 0
        p += 1
        if kind == SPACE:
            continue
        if kind == WORD:
            while p < end and _table[p[0]] & GLUE:
                seen |= _table[p[0]]
                p += 1
            if p - begin == 1 and p < end:
                p = _prefixed(begin, p, end, &mark, &seen)
        elif kind == DIGIT:
            p = _number(begin, end, &mark)
        elif kind == QUOTE:
            if after_string:
                return -1
            mark = STRING_MARK
            p = _quoted(p, end, c"'", &seen)
        elif kind == DOUBLE_QUOTE:
            p = _quoted(p, end, c'"', &seen)
        elif kind == DASH:
            if p < end and p[0] == c"-":
                while p < end and p[0] != c"\n" and p[0] != c"\r":
                    seen |= _table[p[0]]
                    p += 1
                continue
        elif kind == SLASH:
            if p < end and p[0] == c"*":
                p = _block_comment(p + 1, end, &seen)
                if p == NULL:
                    return -1
                continue
        elif kind == DOT:
            if p < end and p[0] == c".":
                return -1
            if p < end and (_table[p[0]] & KIND) == DIGIT:
                p = _number(begin, end, &mark)
        elif kind == DOLLAR:
            if p < end and (_table[p[0]] & KIND) == DIGIT:
                while p < end and (_table[p[0]] & KIND) == DIGIT:
                    p += 1
                if p < end and _table[p[0]] & GLUE:
                    return -1
            else:
                mark = STRING_MARK
                p = _dollar_quoted(begin, end, &seen)
        if p == NULL:
            return -1
        after_string = mark == STRING_MARK
        if mark:
            memcpy(to, kept, begin - kept)
            to += begin - kept
            to[0] = mark
            to += 1
            kept = p
    if seen & BAD or (seen & HIGH and not _utf8(text, end)):
        return -1
    memcpy(to, kept, end - kept)
    return to + (end - kept) - out


def canonical(text: bytes) -> bytes | None:
    """The canonical form of a statement, or None where it is declined."""
    cdef const uint8_t* p = text
    cdef size_t n = len(text)
    # exactly as long as promised, so that a checker of memory sees what is written or read beyond
    cdef uint8_t* given = <uint8_t*>malloc(n + 1)
    cdef uint8_t* out = <uint8_t*>malloc(n + 1)
    cdef ssize_t length
    try:
        if given == NULL or out == NULL:
            raise MemoryError
        memcpy(given, p, n)
        out[n] = 0xA5
        length = canonical_form(given, n, out, n)
        assert out[n] == 0xA5
        return None if length < 0 else (<const char*>out)[:length]
    finally:
        free(given)
        free(out)


def _bench(text: bytes, loops: int) -> int:
    # canonical_form alone, so many times; the caller holds the clock
    cdef const uint8_t* p = text
    cdef uint8_t out[LONGEST]
    cdef size_t n = len(text)
    cdef size_t i, count = loops
    cdef ssize_t length = 0
    with nogil:
        for i in range(count):
            length += canonical_form(p, n, out, LONGEST)
    return length
