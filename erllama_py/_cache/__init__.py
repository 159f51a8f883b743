"""The token-exact KV cache, core side: index, tiers, policy, counters.

``store.Cache`` is the door.  ``key``, ``policy``, ``grade``, ``trie``, ``row``, ``queue``
and ``index`` are pure; ``ram`` and ``quota`` touch the system; ``shared``, ``namespace``,
``lease`` and ``waiters`` tie them together under one lock.
"""
