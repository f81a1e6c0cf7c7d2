-- Hosts that have fallen silent, what may be reclaimed of them, and leases that have expired.
local MAX_DUE = 500
local SWEEP_MS = 1000
local MAX_SWEPT = 16
local MAX_ENDED = 100

-- Gives back leases that a suspect host holds in networks with reclaimAfterSeconds, `most` of them.
local function reclaim(root, host, since, now, most)
  local reclaimed = {}
  local ids = ids_key(root, host)
  local from = '-'
  while #reclaimed < most do
    local entry = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', '0', '1')[1]
    if not entry then
      break
    end
    local space = string.find(entry, ' ', 1, true)
    local network = string.sub(entry, 1, space - 1)
    local after = redis.call('HGET', network_key(root, network), 'reclaimMs')
    if after and since + tonumber(after) <= now then
      local lease = lease_at(root, host, entry)
      if lease then
        end_lease(root, lease, now, true)
        redis.call('HDEL', root .. ':host:' .. host, 'asserted')
        table.insert(reclaimed, lease)
      else
        -- Leads to no lease of this host: for the audit to name.
        from = '(' .. entry
      end
    else
      -- Beyond the last entry of this network.
      from = '[' .. network .. '!'
    end
  end
  return reclaimed
end

-- Hosts that have fallen silent become suspect; what may be reclaimed of suspects is. A little at a time.
local function sweep(root, now)
  local memory = memory_of(root)
  local fallen, reclaimed = {}, {}
  if now < memory.swept + SWEEP_MS or now < memory.grace then
    return fallen, reclaimed
  end
  memory.swept = now
  local silent = redis.call(
    'ZRANGEBYSCORE', root .. ':hosts', '-inf', '(' .. digits(now), 'LIMIT', 0, MAX_SWEPT)
  for _, host in ipairs(silent) do
    make_suspect(root, host, now)
    next_roster(root)
    table.insert(fallen, host)
  end
  local suspects = redis.call(
    'ZRANGE', root .. ':suspects', memory.turn, memory.turn + MAX_SWEPT - 1, 'WITHSCORES')
  memory.turn = #suspects == 2 * MAX_SWEPT and memory.turn + MAX_SWEPT or 0
  for index = 1, #suspects, 2 do
    -- While nobody was heard, suspects were not either.
    local since = math.max(tonumber(suspects[index + 1]), memory.grace)
    for _, lease in ipairs(reclaim(root, suspects[index], since, now, MAX_ENDED - #reclaimed)) do
      table.insert(reclaimed, lease)
    end
  end
  return fallen, reclaimed
end

-- While nobody was heard, or this server was not there, nobody's silence counts.
local function note_beat(root, now, suspect_ms)
  local memory = memory_of(root)
  if not memory.beat or now - memory.beat > suspect_ms / 2 then
    memory.grace = now + suspect_ms
  end
  memory.beat = now
  memory.since = memory.since or now
end

local function due_of(root, host, now)
  local due = {}
  local ids = redis.call('ZRANGEBYSCORE', due_key(root, host), '-inf', digits(now), 'LIMIT', 0, MAX_DUE)
  for _, id in ipairs(ids) do
    local lease = lease_of(root, id)
    if lease then
      table.insert(due, cjson.encode({ id = id, generation = lease.generation }))
    end
  end
  return due
end
