-- What begins a recovery, and what ends it: when the ledger may grant.

-- What a reporter has seen is more than this server has: it has lost something. Begins the recovery, or widens
-- it. The host list is the reporter's where that is the newer one: those it names are awaited.
local function take_for_lost(root, seen, meta, now, wait_ms)
  local memory = memory_of(root)
  if memory.generation then
    memories[root] = nil
    memory = memory_of(root)
  end
  memory.since = now
  local began = not meta.lost
  if began or seen.generation > meta.generation then
    meta.generation = (epoch_of(math.max(seen.generation, meta.generation)) + 1) * EPOCH_UNIT
  end
  meta.lost = true
  meta.revision = math.max(meta.revision, seen.revision)
  local newer = seen.roster > meta.roster
  meta.roster = math.max(meta.roster, seen.roster)
  local named = {}
  for _, host in ipairs(seen.hosts) do
    named[host] = true
    local unknown = redis.call('ZADD', root .. ':roster', '0', host) == 1
    if unknown or newer then
      redis.call('ZREM', root .. ':suspects', host)
      redis.call('ZADD', root .. ':hosts', 'NX', digits(now + wait_ms), host)
    end
  end
  for _, host in ipairs(newer and redis.call('ZRANGE', root .. ':hosts', 0, -1) or {}) do
    if not named[host] and not memory.heard[host] then
      make_suspect(root, host, now)
    end
  end
  await_unlisted(root, now)
  redis.call('HSET', root .. ':leases', GENERATION, digits(meta.generation))
  redis.call('HSET', root .. ':meta', 'revision', digits(meta.revision), 'roster', digits(meta.roster),
    'lost', '1')
  return began
end

-- Arms when no host is missing, or the operator's window is over: then those missing become suspect. Answers
-- who is missing, or nil.
local function try_to_arm(root, meta, now, window_ms)
  local memory = memory_of(root)
  local epoch = digits(epoch_of(meta.generation))
  local missing = {}
  local hosts = redis.call('ZRANGE', root .. ':hosts', 0, -1)
  for _, host in ipairs(hosts) do
    local session = root .. ':host:' .. host
    if not memory.heard[host] or meta.lost and redis.call('HGET', session, 'asserted') ~= epoch then
      table.insert(missing, host)
    end
  end
  if #missing > 0 and not (window_ms and now >= memory.since + window_ms) then
    return missing
  end
  for _, host in ipairs(missing) do
    make_suspect(root, host, now)
  end
  redis.call('HDEL', root .. ':meta', 'lost')
  memory.generation = meta.generation
  local roster = next_roster(root)
  for _, host in ipairs(redis.call('ZRANGE', root .. ':joining', 0, -1)) do
    redis.call('ZADD', root .. ':joining', digits(roster), host)
  end
  memory.said = {}
  for host, who in pairs(memory.heard) do
    open_session(root, host, who, epoch)
  end
  return nil, missing
end
