"""What is counted, and how a scrape shows it.

counters.py    what requests count into: plain integers
described.py   every metric: its name, its kind, what it means
exposition.py  the page of `/metrics`
pages.py       the pages of several processes as one
"""
