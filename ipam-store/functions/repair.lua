-- Puts right what the audit has found, one difference at a time. Only what a lease, or the lack of one, proves is
-- changed: what is missing of a lease is added, in place of what leads to none; what leads to none is removed. Each
-- looks again before it does anything, and answers whether it is right now. What is not here is not proven.

-- The lease of an id, unless its network is not there.
local function placed_lease(root, id)
  local lease = lease_of(root, id)
  return lease and redis.call('EXISTS', network_key(root, lease.network)) == 1 and lease
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
        -- At once, so that the address is free at no time.
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
    redis.call('ZREM', ids_key(root, ask.host), ask.entry)
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
    if not stray_mac(root, ask.network, ask.mac, ask.id) then
      return false
    end
    if redis.call('HGET', key, field) == ask.id then
      redis.call('HDEL', key, field)
    end
    return true
  end,
  ['held stray'] = function(root, ask)
    local network, family, address = ask.network, ask.family, ask.address
    local held = pool_key(root, network, family, 'held')
    if not stray_holder(root, network, family, address, ask.id) then
      return false
    end
    local was_there = redis.call('ZREM', held, address .. ' ' .. ask.id) == 1
    -- Somebody has used it, nobody knows who: it cools down, unless another has it.
    if was_there and not entry_of(held, address) and not is_open(root, network, family, address) then
      remember(root, network, family, address, digits(now_ms()) .. ' -')
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
}

-- repair, a difference as audit answered it -> {repaired}
local function repair(keys, args)
  local root = keys[1]
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local ask = cjson.decode(args[1])
  local work = REPAIRS[ask.what]
  return '{"repaired":' .. tostring(work and work(root, ask) or false) .. '}'
end

redis.register_function({ function_name = 'volt1_repair', callback = repair, flags = { 'allow-oom' } })
