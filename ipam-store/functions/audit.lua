-- Whether the ledger agrees with itself: what says that an address, a MAC or a name is somebody's, and the lease
-- that must say so too. Read part by part, page by page; repaired one difference at a time.
local AUDITED = 200

-- What a lease must be found by: key and entry of each.
local function traces_of(root, lease)
  local traces = {
    { what = 'host', key = ids_key(root, lease.host), entry = lease.network .. ' ' .. lease.id },
  }
  for family, address in pairs(lease.hex) do
    table.insert(traces, {
      what = 'held',
      key = pool_key(root, lease.network, family, 'held'),
      entry = address .. ' ' .. lease.id,
      family = family,
      address = address,
    })
  end
  return traces
end

local function audit_lease(root, lease, note)
  for _, trace in ipairs(traces_of(root, lease)) do
    if not redis.call('ZSCORE', trace.key, trace.entry) then
      note({ what = trace.what .. ' missing', id = lease.id, address = trace.address })
    end
  end
  if redis.call('HGET', network_key(root, lease.network), 'mac:' .. lease.mac) ~= lease.id then
    note({ what = 'mac missing', id = lease.id, mac = lease.mac })
  end
  if lease.expiresAtMs and not redis.call('ZSCORE', due_key(root, lease.host), lease.id) then
    note({ what = 'due missing', id = lease.id })
  end
end

-- The id of an entry "network id" of a host, where no lease says the same.
local function stray_id(root, entry, host)
  local lease, id = lease_at(root, host, entry)
  return not lease and id or nil
end

local function stray_holder(root, network, family, address, id)
  local lease = lease_of(root, id)
  return not lease or lease.network ~= network or lease.hex[family] ~= address
end

-- True for an address of the first of the fresh ranges.
local function is_next(root, network, family, address)
  local range = redis.call('HGET', network_key(root, network), 'next:' .. family)
  local first, last = bounds_of(range or 'g-')
  return first <= address and address <= last
end

-- Entries of a zset after the cursor, for each of which `look` notes what is wrong. Answers the next cursor.
local function audit_entries(key, cursor, look)
  local from = cursor and '(' .. cursor or '-'
  local entries = redis.call('ZRANGEBYLEX', key, from, '+', 'LIMIT', 0, AUDITED)
  for _, entry in ipairs(entries) do
    look(entry)
  end
  return #entries == AUDITED and entries[AUDITED] or nil
end

local AUDITS = {
  leases = function(root, ask, note)
    local page = redis.call('HSCAN', root .. ':leases', ask.cursor or '0', 'COUNT', AUDITED)
    for index = 1, #page[2], 2 do
      if page[2][index] ~= GENERATION then
        audit_lease(root, cjson.decode(page[2][index + 1]), note)
      end
    end
    return page[1] ~= '0' and page[1] or nil
  end,
  host = function(root, ask, note)
    return audit_entries(ids_key(root, ask.host), ask.cursor, function(entry)
      local id = stray_id(root, entry, ask.host)
      if id then
        note({ what = 'host stray', id = id, entry = entry, host = ask.host })
      end
    end)
  end,
  macs = function(root, ask, note)
    local key = network_key(root, ask.network)
    local page = redis.call('HSCAN', key, ask.cursor or '0', 'MATCH', 'mac:*', 'COUNT', AUDITED)
    for index = 1, #page[2], 2 do
      local mac, id = string.sub(page[2][index], 5), page[2][index + 1]
      local lease = lease_of(root, id)
      if not lease or lease.network ~= ask.network or lease.mac ~= mac then
        note({ what = 'mac stray', id = id, mac = mac, network = ask.network })
      end
    end
    return page[1] ~= '0' and page[1] or nil
  end,
  held = function(root, ask, note)
    local network, family = ask.network, ask.family
    local fresh = pool_key(root, network, family, 'fresh')
    local last = pool_key(root, network, family, 'last')
    return audit_entries(pool_key(root, network, family, 'held'), ask.cursor, function(entry)
      local space = string.find(entry, ' ', 1, true)
      local address, id = string.sub(entry, 1, space - 1), string.sub(entry, space + 1)
      local found = { id = id, address = address, network = network, family = family }
      if stray_holder(root, network, family, address, id) then
        found.what = 'held stray'
        note(found)
      elseif is_in(fresh, address) or entry_of(last, address) or is_next(root, network, family, address) then
        found.what = 'held and free'
        note(found)
      end
    end)
  end,
}

-- audit {part: leases | host | macs | held, host?, network?, family?, cursor?}
-- -> {differences: [{what, id, …}…], cursor?}
local function audit(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local found = {}
  local cursor = AUDITS[ask.part](root, ask, function(difference)
    table.insert(found, cjson.encode(difference))
  end)
  return '{"differences":' .. json_list(found) .. ',"cursor":' .. cjson.encode(cursor or cjson.null) .. '}'
end

-- By what is wrong. Each looks again before it does anything, and answers whether it is right now. Only what a
-- lease, or the lack of one, proves is changed.
local REPAIRS = {
  ['host missing'] = function(root, ask, lease)
    return lease and redis.call('ZADD', ids_key(root, lease.host), '0', lease.network .. ' ' .. lease.id)
  end,
  ['due missing'] = function(root, ask, lease)
    return lease and lease.expiresAtMs
      and redis.call('ZADD', due_key(root, lease.host), lease.expiresAtMs, lease.id)
  end,
  ['mac missing'] = function(root, ask, lease)
    return lease and lease.mac == ask.mac
      and redis.call('HSETNX', network_key(root, lease.network), 'mac:' .. lease.mac, lease.id) == 1
  end,
  ['held missing'] = function(root, ask, lease)
    for family, address in pairs(lease and lease.hex or {}) do
      local held = pool_key(root, lease.network, family, 'held')
      if address == ask.address and not entry_of(held, address) then
        take(root, lease.network, family, address, lease.id)
        return true
      end
    end
    return false
  end,
  ['host stray'] = function(root, ask)
    return stray_id(root, ask.entry, ask.host)
      and redis.call('ZREM', ids_key(root, ask.host), ask.entry)
  end,
  ['mac stray'] = function(root, ask, lease)
    local key, field = network_key(root, ask.network), 'mac:' .. ask.mac
    local right = lease and lease.network == ask.network and lease.mac == ask.mac
    return not right and redis.call('HGET', key, field) == ask.id and redis.call('HDEL', key, field)
  end,
  ['held stray'] = function(root, ask)
    if not stray_holder(root, ask.network, ask.family, ask.address, ask.id) then
      return true
    end
    -- Somebody has used it: it cools down.
    give_back(root, ask.network, ask.family, ask.address, ask.id, digits(now_ms()) .. ' ' .. ask.id)
    return true
  end,
  ['held and free'] = function(root, ask)
    if stray_holder(root, ask.network, ask.family, ask.address, ask.id) then
      return false
    end
    local text = entry_of(pool_key(root, ask.network, ask.family, 'last'), ask.address)
    if text then
      forget(root, ask.network, ask.family, ask.address, text)
    end
    change_fresh(root, ask.network, ask.family, function(fresh)
      cut(fresh, ask.address, ask.address)
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
  local done = REPAIRS[ask.what](root, ask, lease_of(root, ask.id))
  return '{"repaired":' .. tostring(done and done ~= 0 or false) .. '}'
end

redis.register_function({ function_name = 'volt1_audit', callback = audit, flags = { 'no-writes' } })
redis.register_function({ function_name = 'volt1_repair', callback = repair, flags = { 'allow-oom' } })
