"""The shapes of OpenAI's API: what clients send, and what servers answer.

chat.py          the types of requests and of whole replies
events.py        server-sent events, and the types of a stream's chunks
usage.py         what an upstream says that was used, as far as it can be true
requests.py      a request's bytes -> a validated `ChatRequest`; begin here

How requests.py reads:

strict_json.py   JSON as the API accepts it, within bounds
hollow.py        a long request, without its long texts
conversation.py  a long conversation of texts alone, without making its messages
agents.py        a long request with tools, its messages by themselves
tools.py         tools that were read before, without reading them again
quotes.py        which quotes end a string, and how many there are
text.py          how many bytes a text has at most, however it is normalised
images.py        images in messages
"""
