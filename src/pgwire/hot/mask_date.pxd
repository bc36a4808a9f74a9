# Dates and timestamps cut to the first of January of their year, for the years 1 to 9999. Header only. Each answers the
# length of what it wrote, -1 for a cell that is not such a date in ISO style. With a zone, the year is that in UTC.
# Never add: a style that depends on the session's DateStyle.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pgwire.hot.mask_action cimport _YEAR_DATE_BINARY, _YEAR_DATE_TEXT, _YEAR_TIME_TEXT, _YEAR_ZONED_TEXT, Mask
from pgwire.hot.mask_number cimport _digit, _load64, _store64
from pgwire.hot.wire cimport load32, store32


cdef inline int64_t _days(int64_t y, int64_t mo, int64_t d) noexcept nogil:
    # days since 2000-01-01 in the proleptic Gregorian calendar
    cdef int64_t era, yoe, doy
    if mo <= 2:
        y -= 1
        mo += 12
    era = y // 400 if y >= 0 else -1
    yoe = y - era * 400
    doy = (153 * (mo - 3) + 2) // 5 + d - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 730425


cdef inline int64_t _year(int64_t days) noexcept nogil:
    # the year that has this day, 0 if it is not in 1..9999
    cdef int64_t y
    if days < _days(1, 1, 1) or days >= _days(10000, 1, 1):
        return 0
    y = 1 + (days - _days(1, 1, 1)) * 400 // 146097
    while days < _days(y, 1, 1):
        y -= 1
    while days >= _days(y + 1, 1, 1):
        y += 1
    return y


cdef inline int _two(const uint8_t* p) noexcept nogil:
    return (p[0] - c'0') * 10 + p[1] - c'0' if _digit(p[0]) and _digit(p[1]) else -1


cdef inline bint _iso_date(const uint8_t* p, size_t n, int64_t* days) noexcept nogil:
    # YYYY-MM-DD at the start of p
    cdef int century, year, month, day
    if n < 10 or p[4] != c'-' or p[7] != c'-':
        return False
    century = _two(p)
    year = _two(p + 2)
    month = _two(p + 5)
    day = _two(p + 8)
    if century < 0 or year < 0 or not 1 <= month <= 12 or not 1 <= day <= 31 or century * 100 + year == 0:
        return False
    days[0] = _days(century * 100 + year, month, day)
    return True


cdef inline void _put_year(uint8_t* out, int64_t y) noexcept nogil:
    out[0] = <uint8_t>(c'0' + y // 1000)
    out[1] = <uint8_t>(c'0' + y // 100 % 10)
    out[2] = <uint8_t>(c'0' + y // 10 % 10)
    out[3] = <uint8_t>(c'0' + y % 10)
    memcpy(out + 4, b"-01-01", 6)


cdef inline ssize_t mask_year_text(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef int64_t days, seconds, y
    cdef int hour, minute, second, a
    cdef int offset = 0
    cdef bint west
    cdef size_t i = 10
    if not _iso_date(p, n, &days):
        return -1
    if m.op != _YEAR_DATE_TEXT:
        if n < 19 or p[10] != c' ' or p[13] != c':' or p[16] != c':':
            return -1
        hour = _two(p + 11)
        minute = _two(p + 14)
        second = _two(p + 17)
        if hour < 0 or minute < 0 or second < 0:
            return -1
        i = 19
        if i < n and p[i] == c'.':
            i += 1
            while i < n and _digit(p[i]):
                i += 1
        if m.op == _YEAR_ZONED_TEXT:
            if n - i < 3 or (p[i] != c'+' and p[i] != c'-'):
                return -1
            west = p[i] == c'-'
            a = _two(p + i + 1)
            if a < 0:
                return -1
            offset = a * 3600
            i += 3
            if n - i >= 3 and p[i] == c':':
                a = _two(p + i + 1)
                if a < 0:
                    return -1
                offset += a * 60
                i += 3
                if n - i >= 3 and p[i] == c':':
                    a = _two(p + i + 1)
                    if a < 0:
                        return -1
                    offset += a
                    i += 3
            if west:
                offset = -offset
        seconds = hour * 3600 + minute * 60 + second - offset
        if seconds < 0:
            days -= 1
        elif seconds >= 86400:
            days += 1
    if i != n:
        return -1
    y = _year(days)
    if y == 0:
        return -1
    _put_year(out, y)
    if m.op == _YEAR_DATE_TEXT:
        return 10
    memcpy(out + 10, b" 00:00:00", 9)
    if m.op == _YEAR_TIME_TEXT:
        return 19
    memcpy(out + 19, b"+00", 3)
    return 22


cdef inline ssize_t mask_year_binary(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef int64_t days, micros, y
    if m.op == _YEAR_DATE_BINARY:
        if n != 4:
            return -1
        y = _year(<int32_t>load32(p))
        if y == 0:
            return -1
        store32(out, <uint32_t><int32_t>_days(y, 1, 1))
        return 4
    if n != 8:
        return -1
    micros = <int64_t>_load64(p)
    days = micros // (<int64_t>86400 * 1000000)
    if days * (<int64_t>86400 * 1000000) > micros:
        days -= 1                   # division in C rounds towards zero
    y = _year(days)
    if y == 0:
        return -1
    _store64(out, <uint64_t>(_days(y, 1, 1) * 86400 * 1000000))
    return 8
