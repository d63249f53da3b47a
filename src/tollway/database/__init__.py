"""Where things are kept, without a word of what they mean.

base.py            what the rest asks of a database
data_directory.py  who has the data directory, and whether it can be used
sqlite.py          the SQLite file
writer.py          the thread that writes it, and what it does while it cannot
inbox.py           the writer's queue
journal.py         the files that stand by for a database which cannot be written
postgres.py        Postgres
instance.py        this process among the others that use one Postgres
rights.py          who may do what there
migrate.py         brings the tables up to this version
migrations/        the migrations themselves
"""
