-- wrk script: a conversation of MESSAGES messages of some MESSAGE_BYTES, two roles in turn, sent over and over. Each is
-- SENTENCE, as in JSON, so often. These three, TOKEN, MODEL and EXTRA_HEADERS ("Name: value|Name: value") come from the environment.
local sentence = os.getenv("SENTENCE")
local text = string.rep(sentence, math.ceil(tonumber(os.getenv("MESSAGE_BYTES")) / #sentence))
local messages = {}
for i = 1, tonumber(os.getenv("MESSAGES")) do
  messages[i] = '{"role":"' .. (i % 2 == 1 and "user" or "assistant") .. '","content":"' .. text .. '"}'
end
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("TOKEN") or "sk-test")
wrk.headers["Content-Type"] = "application/json"
for n, v in string.gmatch(os.getenv("EXTRA_HEADERS") or "", "([^:|]+): ?([^|]+)") do wrk.headers[n] = v end
wrk.body = '{"model":"' .. (os.getenv("MODEL") or "m1") .. '","messages":[' .. table.concat(messages, ",")
  .. '],"temperature":0.7,"max_tokens":64,"stream":false}'
