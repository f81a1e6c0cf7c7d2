-- Repairs the differences that the audit has found, one at a time. It changes only what is proven: by a lease, by the
-- lack of a lease, or by the definition of a network. A missing index entry of a lease is added, in place of an entry
-- without a lease. An entry without a lease is removed, unless its host may have a record of that lease. Each repair
-- checks again before it changes anything, and answers whether all is right now. What has no repair here cannot be
-- proven.

-- For this long an answer of the hosts counts. After that they are asked again.
local ANSWERED_MS = 60000

-- Asks all hosts, by a recovery, for what only they can prove. Answers false; true if they have answered already.
local function ask_hosts(root, why)
  local tried = memory_of(root).tried or {}
  local now = now_ms(root)
  if tried[why] and now < tried[why] + ANSWERED_MS then
    return true
  end
  begin_recovery(root, now)
  tried[why] = now
  memory_of(root).tried = tried
  return false
end

-- As ask_hosts, but asks one host, for an entry "network id" of its own.
local function ask_host(root, host, entry)
  local memory = memory_of(root)
  memory.asked = memory.asked or {}
  local session = root .. ':host:' .. host
  local asked = host .. ' ' .. entry
  local epoch = digits(epoch_of(memory.generation))
  if memory.asked[asked] and redis.call('HGET', session, 'asserted') == epoch then
    return true
  end
  memory.asked[asked] = true
  ask_again(root, host)
  return false
end

-- True while an id without a readable lease is in the list of a host, which may have a record of it.
local function is_claimed(root, network, id)
  if redis.call('HEXISTS', root .. ':leases', id) == 1 then
    return not lease_of(root, id)
  end
  for _, host in ipairs(redis.call('ZRANGE', root .. ':roster', 0, -1)) do
    if redis.call('ZSCORE', ids_key(root, host), network .. ' ' .. id) then
      return true
    end
  end
  return false
end

-- A host that is neither live nor suspect becomes suspect, until its next heartbeat.
local function keep_in_a_list(root, host)
  if not redis.call('ZSCORE', root .. ':hosts', host) then
    redis.call('ZADD', root .. ':suspects', 'NX', digits(now_ms(root)), host)
    if memory_of(root).live[host] then
      note_change(root, host, false)
    end
  end
end

-- The lease of an id, if its network exists.
local function placed_lease(root, id)
  local lease = lease_of(root, id)
  return lease and redis.call('EXISTS', network_key(root, lease.network)) == 1 and lease
end

-- Writes to the log of a network, so that its followers read an id anew.
local function note_mended(root, network, id)
  if redis.call('EXISTS', network_key(root, network)) == 1 then
    append(root, network, now_ms(root), CHANGED, id)
  end
end

local REPAIRS = {
  ['host missing'] = function(root, ask)
    local lease = placed_lease(root, ask.id)
    if not lease then
      return false
    end
    redis.call('ZADD', ids_key(root, lease.host), '0', lease.network .. ' ' .. lease.id)
    return true
  end,
  ['due missing'] = function(root, ask)
    local lease = placed_lease(root, ask.id)
    if not lease or not lease.expiresAtMs then
      return false
    end
    redis.call('ZADD', due_key(root, lease.host), lease.expiresAtMs, lease.id)
    return true
  end,
  ['mac missing'] = function(root, ask)
    local lease = placed_lease(root, ask.id)
    if not lease or lease.mac ~= ask.mac then
      return false
    end
    local key, field = network_key(root, lease.network), 'mac:' .. lease.mac
    local holder = redis.call('HGET', key, field)
    if holder and not stray_mac(root, lease.network, lease.mac, holder) then
      return holder == lease.id
    end
    redis.call('HSET', key, field, lease.id)
    note_mended(root, lease.network, lease.id)
    return true
  end,
  ['held missing'] = function(root, ask)
    local lease = placed_lease(root, ask.id)
    for family, address in pairs(lease and lease.hex or {}) do
      if address == ask.address then
        local held = pool_key(root, lease.network, family, 'held')
        local holder = entry_of(held, address)
        if holder and not stray_holder(root, lease.network, family, address, holder) then
          return holder == lease.id
        end
        -- Both in one call, so that the address is never free.
        if holder then
          redis.call('ZREM', held, address .. ' ' .. holder)
        end
        take(root, lease.network, family, address, lease.id)
        return true
      end
    end
    return false
  end,
  ['host stray'] = function(root, ask)
    if not stray_id(root, ask.entry, ask.host) then
      return false
    end
    if not lease_of(root, ask.id) and not ask_host(root, ask.host, ask.entry) then
      return false
    end
    redis.call('ZREM', ids_key(root, ask.host), ask.entry)
    note_mended(root, string.match(ask.entry, '^(%S+) ') or '-', ask.id)
    return true
  end,
  ['due stray'] = function(root, ask)
    if is_due(lease_of(root, ask.id), ask.host) then
      return false
    end
    redis.call('ZREM', due_key(root, ask.host), ask.id)
    return true
  end,
  ['mac stray'] = function(root, ask)
    local key, field = network_key(root, ask.network), 'mac:' .. ask.mac
    if not stray_mac(root, ask.network, ask.mac, ask.id) or is_claimed(root, ask.network, ask.id) then
      return false
    end
    if redis.call('HGET', key, field) == ask.id then
      redis.call('HDEL', key, field)
    end
    note_mended(root, ask.network, ask.id)
    return true
  end,
  ['held stray'] = function(root, ask)
    local network, family, address = ask.network, ask.family, ask.address
    local held = pool_key(root, network, family, 'held')
    if not stray_holder(root, network, family, address, ask.id) or is_claimed(root, network, ask.id) then
      return false
    end
    local was_there = redis.call('ZREM', held, address .. ' ' .. ask.id) == 1
    -- A workload that is not known has used the address: it cools down, unless another id holds it.
    if was_there and not entry_of(held, address) and not is_open(root, network, family, address) then
      remember(root, network, family, address, digits(now_ms(root)) .. ' -')
    end
    return true
  end,
  ['held and free'] = function(root, ask)
    local network, family, address = ask.network, ask.family, ask.address
    if stray_holder(root, network, family, address, ask.id) then
      return false
    end
    local text = entry_of(pool_key(root, network, family, 'last'), address)
    if text then
      forget(root, network, family, address, text)
    end
    redis.call('ZREM', pool_key(root, network, family, 'free'), address)
    change_fresh(root, network, family, function(fresh)
      cut(fresh, address, address)
    end)
    return true
  end,
  ['lease unreadable'] = function(root, ask)
    if redis.call('HEXISTS', root .. ':leases', ask.id) == 0 or lease_of(root, ask.id) then
      return true
    end
    if not ask_hosts(root, 'lease ' .. ask.id) then
      return false
    end
    redis.call('HDEL', root .. ':leases', ask.id)
    return true
  end,
  ['roster missing'] = function(root, ask)
    redis.call('ZADD', root .. ':roster', '0', ask.host)
    keep_in_a_list(root, ask.host)
    return true
  end,
  ['state missing'] = function(root, ask)
    if not redis.call('ZSCORE', root .. ':roster', ask.host) then
      return false
    end
    keep_in_a_list(root, ask.host)
    return true
  end,
  ['changes missing'] = function(root)
    if changes_missing(root) then
      redis.call('DEL', root .. ':changed')
      redis.call('HSET', root .. ':meta', 'changedFrom', digits(meta_of(root).roster))
    end
    return true
  end,
  ['session missing'] = function(root, ask)
    local memory = memory_of(root)
    local who = memory.sessions[ask.host] or memory.heard[ask.host]
    if not who and redis.call('ZCARD', ids_key(root, ask.host)) == 0 then
      -- It has neither a machine nor a lease, so it is no host.
      strike(root, ask.host)
      return true
    elseif not who then
      return false
    end
    local machine, agent, boot = string.match(who, '^(%S+) (%S+) (%S+)$')
    for field, known in pairs({ machineId = machine, agentId = agent, bootId = boot }) do
      if known ~= '-' then
        redis.call('HSET', root .. ':host:' .. ask.host, field, known)
      end
    end
    return true
  end,
}
