"""The base class of all errors that a user can act on.

It stands in a module of its own, because ``models`` and ``datasets`` do not import each other.
"""


class UserError(Exception):
    """Something that the user can mend; the message says what was found and what to do.

    The scripts print the message without a traceback and end with status 1.
    """
