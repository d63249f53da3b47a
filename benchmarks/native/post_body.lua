-- wrk script: the request in the file BODY, sent over and over. BODY, TOKEN and EXTRA_HEADERS ("Name: value|Name: value")
-- come from the environment.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.body = file:read("*a")
file:close()
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("TOKEN") or "sk-test")
wrk.headers["Content-Type"] = "application/json"
for n, v in string.gmatch(os.getenv("EXTRA_HEADERS") or "", "([^:|]+): ?([^|]+)") do wrk.headers[n] = v end
