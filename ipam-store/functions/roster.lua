-- The list of hosts: who is in it, who lives, who is suspect.

-- The list of hosts has changed. Until the ledger is armed no counter grows by itself, or it would hide that a host
-- has seen more: arming is one change of the list, whatever came before it.
local function next_roster(root)
  return redis.call('HINCRBY', root .. ':meta', 'roster', memory_of(root).generation and 1 or 0)
end

local function make_suspect(root, host, now)
  redis.call('ZREM', root .. ':hosts', host)
  redis.call('ZREM', root .. ':joining', host)
  redis.call('ZADD', root .. ':suspects', digits(now), host)
  memory_of(root).sessions[host] = nil
end

-- Notes that a host lives. Answers what it was: live, suspect, or nil for unknown.
local function enter(root, ask, now)
  local session = root .. ':host:' .. ask.host
  local before = redis.call('ZSCORE', root .. ':hosts', ask.host) and 'live'
  if not before then
    local vouched = redis.call('ZCARD', root .. ':hosts') == 0
    before = redis.call('ZREM', root .. ':suspects', ask.host) == 1 and 'suspect' or nil
    local roster = next_roster(root)
    redis.call('ZADD', root .. ':roster', '0', ask.host)
    if not vouched then
      redis.call('ZADD', root .. ':joining', digits(roster), ask.host)
    end
  end
  if redis.call('HGET', session, 'machineId') ~= ask.machineId then
    redis.call('HDEL', session, 'asserted')
  end
  redis.call('HSET', session, 'machineId', ask.machineId, 'bootId', ask.bootId, 'seenMs', digits(now))
  redis.call('ZADD', root .. ':hosts', digits(now + ask.suspectMs), ask.host)
  return before
end

-- A host that others have seen in a list will be awaited by them, should this server be emptied. So it may be
-- granted leases when one that is no newcomer has seen it, or when all are newcomers. Only of an armed ledger are
-- the numbers of lists its own.
local function vouch(root, ask)
  local joining = root .. ':joining'
  if not redis.call('ZSCORE', joining, ask.host) then
    redis.call('ZREMRANGEBYSCORE', joining, '-inf', digits(ask.seen.roster))
  elseif redis.call('ZCARD', joining) == redis.call('ZCARD', root .. ':hosts') then
    redis.call('ZREM', joining, ask.host)
  end
end
