-- Finds hosts that have fallen silent, reclaims leases of suspect hosts, and finds leases that have expired.
local MAX_DUE = 500
-- A sweep is short, so that no call waits for it. A sweep that has reached its limits is followed by another soon.
local SWEEP_MS = 1000
local BUSY_SWEEP_MS = 50
-- For this long only one host is asked to beat soon; if it does not, another is asked.
local SWEEPER_MS = 1000
local MAX_FALLEN = 256
local MAX_SWEPT = 256
local MAX_ENDED = 100
-- If more than one in this many heartbeats came from hosts that had waited in vain, the ledger itself was late.
local LATE_SHARE = 20

-- How long after it became suspect a host loses its leases in a network; false for never. Read once in a slice.
local function reclaim_ms(root, known, network)
  if known[network] == nil then
    known[network] = tonumber(redis.call('HGET', network_key(root, network), 'reclaimMs') or nil) or false
  end
  return known[network]
end

-- Ends leases of a suspect host in networks with reclaimAfterSeconds, until `reclaimed` has MAX_ENDED.
local function reclaim(root, host, since, now, known, reclaimed)
  local ids, from, before = ids_key(root, host), '-', #reclaimed
  while from and #reclaimed < MAX_ENDED do
    local entries = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', 0, MAX_ENDED - #reclaimed)
    from = nil
    for _, entry in ipairs(entries) do
      local network = string.sub(entry, 1, string.find(entry, ' ', 1, true) - 1)
      local after = reclaim_ms(root, known, network)
      if not after or since + after > now then
        -- Beyond the last entry of this network.
        from = '[' .. network .. '!'
        break
      end
      -- An entry without a lease of this host is left for the audit.
      local lease, _, text = lease_at(root, host, entry)
      if lease then
        end_lease(root, lease, now, true)
        reclaimed[#reclaimed + 1] = text
      end
      from = '(' .. entry
    end
  end
  if #reclaimed > before then
    redis.call('HDEL', root .. ':host:' .. host, 'asserted')
  end
end

-- Ends leases that may be reclaimed from the next suspects. Answers the texts of those leases.
local function reclaim_next(root, now)
  local memory = memory_of(root)
  local known, reclaimed = {}, {}
  local suspects = redis.call(
    'ZRANGE', root .. ':suspects', memory.turn, memory.turn + MAX_SWEPT - 1, 'WITHSCORES')
  for index = 1, #suspects, 2 do
    -- The time in which no host was heard does not count against suspects.
    local since = math.max(tonumber(suspects[index + 1]), memory.grace)
    reclaim(root, suspects[index], since, now, known, reclaimed)
    if #reclaimed == MAX_ENDED then
      -- The next sweep goes on with the same host.
      memory.turn = memory.turn + (index - 1) / 2
      return reclaimed
    end
  end
  memory.turn = #suspects == 2 * MAX_SWEPT and memory.turn + MAX_SWEPT or 0
  return reclaimed
end

-- Whether this host is to beat soon, since the sweep has more to do. One host at a time is asked.
local function is_sweeper(memory, host, now)
  local sweeper = memory.sweeper
  if not memory.is_busy or sweeper and sweeper.host ~= host and now < sweeper.until_ms then
    return false
  end
  memory.sweeper = { host = host, until_ms = now + SWEEPER_MS }
  return true
end

-- Makes silent hosts suspect and reclaims leases of suspects, a slice at a time. Answers those hosts, those leases, and
-- whether `host` has to beat soon for the next slice.
local function sweep(root, host, now)
  local memory = memory_of(root)
  if now < memory.swept or now < memory.grace then
    return {}, {}, is_sweeper(memory, host, now)
  end
  local fallen = redis.call(
    'ZRANGEBYSCORE', root .. ':hosts', '-inf', '(' .. digits(now), 'LIMIT', 0, MAX_FALLEN)
  for _, silent in ipairs(fallen) do
    make_suspect(root, silent, now)
  end
  local reclaimed = reclaim_next(root, now)
  memory.is_busy = #fallen == MAX_FALLEN or #reclaimed > 0
  memory.swept = now + (memory.is_busy and BUSY_SWEEP_MS or SWEEP_MS)
  return fallen, reclaimed, is_sweeper(memory, host, now)
end

-- Notes a heartbeat. Silence does not count for a time in which no host was heard, the server was away, or the ledger
-- itself was late: several hosts, and a large enough part of those that are heard, waited in vain for an answer.
local function note_beat(root, now, ask)
  local memory = memory_of(root)
  local window = memory.window
  if not window or now >= window.until_ms then
    window = { until_ms = now + ask.suspectMs, beats = 0, before = window and window.beats or 0, late = {}, count = 0 }
    memory.window = window
  end
  window.beats = window.beats + 1
  if (ask.late or 0) > 0 and not window.late[ask.host] then
    window.late[ask.host] = true
    window.count = window.count + 1
  end
  local was_late = window.count > 1 and window.count * LATE_SHARE > math.max(window.beats, window.before)
  if was_late or not memory.beat or now - memory.beat > ask.suspectMs / 2 then
    memory.grace = now + ask.suspectMs
  end
  memory.beat = now
  memory.since = memory.since or now
end

-- JSON of the host's leases that have expired. The generation is found in the lease's text, where it occurs once:
-- decoding the lease would cost more than all else.
local function due_of(root, host, now)
  local due = {}
  local ids = redis.call('ZRANGEBYSCORE', due_key(root, host), '-inf', digits(now), 'LIMIT', 0, MAX_DUE)
  for _, id in ipairs(ids) do
    local text = redis.call('HGET', root .. ':leases', id)
    local generation = text and string.match(text, '"generation":"(%d+)"')
    if generation then
      due[#due + 1] = '{"id":' .. cjson.encode(id) .. ',"generation":"' .. generation .. '"}'
    end
  end
  return due
end
