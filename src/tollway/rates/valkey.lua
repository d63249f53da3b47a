-- Rates and requests at a time, over all replicas. One call carries what a replica has asked since its last one:
--   ARGV[1]: msgpack of {replica, window, lease, operations}, times in microseconds.
--   The reply: msgpack of one answer for each operation, in order.
-- A script runs alone and by this server's clock, so what it counts is exact. Keys:
--   tollway:rate:KEY         list of admission times, oldest first, each in it once
--   tollway:running:ACCOUNT  hash of replica -> 'count until': its requests in flight, for as long as it renews them
--   tollway:replicas         sorted set of replicas by their last heartbeat
--   tollway:recovering       until when this server may lack admissions of the minute before
--   tollway:shared           until when the minute before holds places that replicas admitted by themselves
local replica, window, lease, operations = unpack(cmsgpack.unpack(ARGV[1]))
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local call = redis.call

-- The clock was set back: what it says of these times is only that they are past.
local function mend(key)
  local times = call('LRANGE', key, 0, -1)
  call('DEL', key)
  for _, at in ipairs(times) do
    call('RPUSH', key, string.format('%.0f', math.min(at, now)))
  end
end

-- How many admissions the window holds. Exactly its length ago still counts.
local function recent(key)
  local first = call('LINDEX', key, 0)
  if not first then return 0 end
  local last = call('LINDEX', key, -1)
  if last - now > 1000000 then mend(key) end
  while first and now - first > window do
    call('LPOP', key)
    first = call('LINDEX', key, 0)
  end
  return call('LLEN', key)
end

-- Remaining places, and how long until the next is free.
local function standing(key, count, limit)
  if count < limit then return limit - count, 0 end
  if limit < 1 then return 0, window end
  -- Behind others when the limit was lowered meanwhile.
  return 0, math.max(0, call('LINDEX', key, count - limit) + window - now)
end

local function running_elsewhere(key)
  local total = 0
  local of_replicas = call('HGETALL', key)
  for i = 1, #of_replicas, 2 do
    if of_replicas[i] ~= replica then
      local count, expires = string.match(of_replicas[i + 1], '(%d+) (%d+)')
      expires = tonumber(expires)
      -- One that is further ahead than any lease was written before the clock was set back.
      if expires <= now or expires - now > 2 * lease then
        call('HDEL', key, of_replicas[i])
      else
        total = total + count
      end
    end
  end
  return total
end

local function publish(account, count)
  local key = 'tollway:running:' .. account
  if count == 0 then
    call('HDEL', key, replica)
  else
    call('HSET', key, replica, string.format('%d %.0f', count, now + lease))
    call('PEXPIRE', key, math.ceil(lease / 1000))
  end
end

local on = {}

-- {admission time, remaining, reset}; the first is 0 where the rate refuses and -1 where too many run.
function on.take(key, limit, account, running, running_max)
  key = 'tollway:rate:' .. key
  if account then
    if running_elsewhere('tollway:running:' .. account) + running > running_max then
      return {-1, standing(key, recent(key), limit)}
    end
    publish(account, running)
  end
  local count = recent(key)
  if count >= limit then return {0, standing(key, count, limit)} end
  local at = now
  local last = call('LINDEX', key, -1)
  -- Each time names one place, to be given back by it.
  if last and tonumber(last) >= at then at = last + 1 end
  call('RPUSH', key, string.format('%.0f', at))
  call('PEXPIRE', key, math.ceil(window / 1000) + 2000)
  return {at, standing(key, count + 1, limit)}
end

function on.give_back(key, at)
  call('LREM', 'tollway:rate:' .. key, -1, string.format('%.0f', at))
  return {}
end

function on.state(key, limit)
  key = 'tollway:rate:' .. key
  return {0, standing(key, recent(key), limit)}
end

function on.running(account, count)
  publish(account, count)
  return {}
end

-- The longest of what this server knows and what it is told: how long something is still so.
local function longest(key, told)
  local left = math.max(0, (call('GET', key) or 0) - now)
  if told > left then
    left = told
    call('SET', key, string.format('%.0f', now + left), 'PX', math.ceil(left / 1000))
  end
  return left
end

-- {how long rates are still not to be taken from here, the live replicas, how long shares still count}
function on.heartbeat(recovering, shared)
  local replicas = 'tollway:replicas'
  call('ZADD', replicas, now, replica)
  call('ZREMRANGEBYSCORE', replicas, '-inf', now - lease)
  call('ZREMRANGEBYSCORE', replicas, '(' .. string.format('%.0f', now), '+inf')
  return {
    longest('tollway:recovering', recovering), call('ZRANGE', replicas, 0, -1), longest('tollway:shared', shared)
  }
end

function on.leave()
  call('ZREM', 'tollway:replicas', replica)
  return {}
end

local answers = {}
for i, operation in ipairs(operations) do
  answers[i] = on[operation[1]](unpack(operation, 2))
end
return cmsgpack.pack(answers)
