-- By its settings the server may evict keys of the ledger. Grants and heartbeats check that once a second, since an
-- agent checks it only when it connects, and settings may change later.
local LOOK_MS = 1000

-- By root: `evicted`, how many keys the server had evicted at the last look; `promoted`, the replication offset at
-- which it became the master. It outlives the permission to grant.
local servers = {}

-- Hosts that are neither live nor suspect were lost from those lists. They are entered as live, to be awaited.
local function await_unlisted(root, now)
  local live, suspects = root .. ':hosts', root .. ':suspects'
  if redis.call('ZCARD', live) + redis.call('ZCARD', suspects) >= redis.call('ZCARD', root .. ':roster') then
    return
  end
  for _, host in ipairs(redis.call('ZRANGE', root .. ':roster', 0, -1)) do
    if not redis.call('ZSCORE', suspects, host) then
      redis.call('ZADD', live, 'NX', digits(now), host)
    end
  end
end

-- Begins a recovery: only the hosts can prove what was lost, by re-asserting it.
local function begin_recovery(root, now)
  local meta = meta_of(root)
  if not meta.lost then
    meta.generation = (epoch_of(meta.generation) + 1) * EPOCH_UNIT
  end
  redis.call('HSET', root .. ':leases', GENERATION, digits(meta.generation))
  redis.call('HSET', root .. ':meta', 'revision', digits(meta.revision), 'roster', digits(meta.roster),
    'lost', '1')
  await_unlisted(root, now)
  memories[root] = nil
  memory_of(root).since = now
end

-- Notes in the memory, as `unfit`, why nothing may be granted. A server that was a replica meanwhile is disarmed: its
-- memory is older than its data. Evicted keys are a loss.
local function look_at_server(root, now)
  local looked = memory_of(root).looked
  if looked and now < looked + LOOK_MS then
    return
  end
  local info = redis.call('INFO', 'memory', 'stats', 'replication')
  local policy = string.match(info, '\nmaxmemory_policy:(%S+)') or 'noeviction'
  local evicted = tonumber(string.match(info, '\nevicted_keys:(%d+)') or 0)
  local promoted = string.match(info, '\nsecond_repl_offset:(%d+)')
  local before = servers[root] or { evicted = 0, promoted = promoted }
  servers[root] = { evicted = math.min(evicted, before.evicted), promoted = promoted or before.promoted }
  if servers[root].promoted ~= before.promoted then
    memories[root] = nil
  end
  local unfit = policy ~= 'noeviction' and 'maxmemory-policy is ' .. policy .. '; it must be noeviction' or nil
  if not unfit and evicted > servers[root].evicted then
    servers[root].evicted = evicted
    if meta_of(root).generation > 0 then
      begin_recovery(root, now)
    end
  end
  local memory = memory_of(root)
  memory.looked, memory.unfit = now, unfit
end
