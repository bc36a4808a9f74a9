# A session's names as SQL changes them; each takes the reactor's lock.
from pgwire.hot.link cimport LinkState

cdef int define_name(LinkState* k, bytes name, bytes text) except -1
cdef int define_cursor(LinkState* k, bytes name, bytes text, bint holds) except -1
cdef int forget_name(LinkState* k, bytes name) except -1
cdef int forget_cursor(LinkState* k, bytes name) except -1
cdef object meaning(LinkState* k, bint cursor, bytes name)
