-- wrk script: the request of post.lua with another bearer token each time, from the lines of the file TOKENS.
local text, requests, at = {}, {}, 0
for i = 1, 14 do text[i] = "Explain in three sentences why the Tay Bridge fell. " end
local body = '{"model":"' .. os.getenv("MODEL") .. '","messages":[{"role":"system","content":"You are a careful assistant."},{"role":"user","content":"'
  .. table.concat(text) .. '"}],"temperature":0.7,"top_p":0.95,"max_tokens":64,"stream":false,"user":"u-1029"}'
function init()
  for token in io.lines(os.getenv("TOKENS")) do
    requests[#requests + 1] = wrk.format("POST", nil, {
      ["Host"] = wrk.headers["Host"], ["Authorization"] = "Bearer " .. token, ["Content-Type"] = "application/json",
      ["User-Agent"] = "OpenAI/Python 2.8.0", ["Accept"] = "application/json" }, body)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
