"""What can go wrong with a memory, each with a name of its own; the messages say what to do."""


class UnknownMemory(ValueError):
    """There is no memory of this id, or it belongs to somebody else."""


class MemoryFileRefused(ValueError):
    """The database is another program's, of a newer version, or asks for another model."""


class MemoryFileDamaged(OSError):
    """The database cannot be read in whole; `verify` names what is damaged, `export` saves what is intact."""


class MemoryUnavailable(OSError):
    """The database cannot be written or reached: a full disk, a read-only file, a server that is down."""
