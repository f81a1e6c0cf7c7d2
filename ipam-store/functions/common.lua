-- The ledger. All keys hang from one root, KEYS[1] of every function, which ends in a hash tag, so that all
-- lie in one slot. Addresses are fixed-width lower-case hex, 8 digits or 32: they sort as text, and no
-- number of Lua's has to hold an IPv6 address. Times are milliseconds of this server's clock.
--
--   <root>:meta                 hash    epoch, counter (generations), revisions
--   <root>:networks             hash    name -> JSON {revision, network, subnets: [[first, last]…]}
--   <root>:leases               hash    attachment id -> JSON of the lease
--   <root>:ids                  zset    attachment ids, by name
--   <root>:hosts                hash    host -> JSON of its session
--   <root>:host:<h>:ids         zset    ids that a host holds, by name
--   <root>:host:<h>:due         zset    ids that expire, by time
--   <root>:net:<n>              hash    revision, reuseDelayMs
--   <root>:net:<n>:ids          zset    ids in a network, by name
--   <root>:net:<n>:macs         hash    MAC -> id
--   <root>:net:<n>:<f>:allowed  zset    ranges "first-last" that the pool gives out, by name
--   <root>:net:<n>:<f>:fresh    zset    ranges never used since they are allowed, by name
--   <root>:net:<n>:<f>:held     hash    address -> id
--   <root>:net:<n>:<f>:released hash    address -> "time workload" of the last release
--   <root>:net:<n>:<f>:free     zset    released addresses of the pool, by time: the least recently used first
--
-- Every function takes one JSON argument and answers JSON; an error is {"error":{code, message, details}}.
-- Nothing is written before everything is decided, so an error leaves the store as it was.

local VERSION = '1.0'
local EPOCH_UNIT = 4294967296

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Numbers beyond 14 digits would lose their last ones in cjson.
local function digits(number)
  return string.format('%.0f', number)
end

-- An array of what is JSON already. cjson writes an empty table as an object.
local function json_array(encoded)
  return '[' .. table.concat(encoded, ',') .. ']'
end

local function refuse(code, message, details, retry_after_ms)
  return cjson.encode({
    error = { code = code, message = message, details = details, retryAfterMs = retry_after_ms },
  })
end

local function family_key(root, network, family, part)
  return root .. ':net:' .. network .. ':' .. family .. ':' .. part
end

-- Adds 1 or -1 to fixed-width hex; the caller knows that it does not run over.
local function hex_step(hex, step)
  local chunk = 8
  local result = {}
  local carry = step
  for last = #hex, 1, -chunk do
    local value = tonumber(string.sub(hex, last - chunk + 1, last), 16) + carry
    carry = 0
    if value < 0 then
      value = value + EPOCH_UNIT
      carry = -1
    elseif value >= EPOCH_UNIT then
      value = value - EPOCH_UNIT
      carry = 1
    end
    table.insert(result, 1, string.format('%08x', value))
  end
  return table.concat(result)
end

local function split_range(range)
  local dash = string.find(range, '-', 1, true)
  return string.sub(range, 1, dash - 1), string.sub(range, dash + 1)
end

-- The range of a zset of ranges that holds the address.
local function range_around(key, address)
  local found = redis.call('ZREVRANGEBYLEX', key, '[' .. address .. '-g', '-', 'LIMIT', 0, 1)
  if #found == 0 then
    return nil
  end
  local _, last = split_range(found[1])
  if last < address then
    return nil
  end
  return found[1]
end

-- Takes one address out of the fresh ranges, where it is in one.
local function cut_fresh(key, address)
  local range = range_around(key, address)
  if not range then
    return
  end
  local first, last = split_range(range)
  redis.call('ZREM', key, range)
  if first < address then
    redis.call('ZADD', key, 0, first .. '-' .. hex_step(address, -1))
  end
  if address < last then
    redis.call('ZADD', key, 0, hex_step(address, 1) .. '-' .. last)
  end
end

local function released_of(root, network, family, address)
  local text = redis.call('HGET', family_key(root, network, family, 'released'), address)
  if not text then
    return nil
  end
  local space = string.find(text, ' ', 1, true)
  return tonumber(string.sub(text, 1, space - 1)), string.sub(text, space + 1)
end

local function lease_of(root, id)
  local text = redis.call('HGET', root .. ':leases', id)
  return text and cjson.decode(text) or nil
end

local function next_counter(root, name)
  return redis.call('HINCRBY', root .. ':meta', name, 1)
end

local function next_generation(root)
  local epoch = tonumber(redis.call('HGET', root .. ':meta', 'epoch') or '0')
  if epoch == 0 then
    epoch = 1
    redis.call('HSET', root .. ':meta', 'epoch', 1)
  end
  return digits(epoch * EPOCH_UNIT + next_counter(root, 'counter'))
end

-- One page of a zset of names, after the cursor.
local function page_of(key, cursor, limit)
  local from = cursor and ('(' .. cursor) or '-'
  local names = redis.call('ZRANGEBYLEX', key, from, '+', 'LIMIT', 0, limit + 1)
  local more = #names > limit
  if more then
    table.remove(names)
  end
  return names, more and names[#names] or nil
end
