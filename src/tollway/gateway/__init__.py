"""The life of one request. `Pipeline.serve` is the place to begin; each stage is a file.

pipeline.py      joins the stages, from the request's bytes to its settled charge
types.py         the values that the stages hand on
authenticate.py  bearer token -> Caller
claim.py         has a request with this Idempotency-Key been made before?
admit.py         may it run? finds the model, takes a place in the rate, holds the credit
cost.py          the most that it can cost, and the words for who cannot pay that
policy.py        what a model asks of requests: denied parameters, defaults, images
prompt.py        the most tokens that a prompt can have, where nobody has a tokenizer
route.py         model -> which of its upstreams now, and whether another after it
relay.py         asks the upstream and gives its answer to the client, counting what was given
template.py      rewrites an event of a stream by the pattern of the last one
settle.py        what was used -> what it costs
"""
