"""The embedded model: llama.cpp in a child process, made to answer as OpenAI's API does.

model_file.py    finds or fetches the model's file
progress.py      shows how far a fetch is
progress_bar.py  as a bar, on a terminal
runner.py        the child's own program
process.py       starts it, watches it, starts it again
slots.py         the bounded queue in front of it
translate.py     a client's request -> the child's
chunks.py        the child's events -> OpenAI's, those of n choices as one stream
assemble.py      a stream -> one reply
upstream.py      puts these together as an `Upstream`
"""
