-- Whether the ledger agrees with itself: what says that an address, a MAC or a name is somebody's, and the lease
-- that must say so too; and whether every address of a pool is somewhere. Read part by part, page by page.
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

local function stray_mac(root, network, mac, id)
  local lease = lease_of(root, id)
  return not lease or lease.network ~= network or lease.mac ~= mac
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

-- True for an address that could be given out, whoever holds it.
local function is_open(root, network, family, address)
  return is_in(pool_key(root, network, family, 'fresh'), address)
    or is_next(root, network, family, address)
    or entry_of(pool_key(root, network, family, 'last'), address)
    or redis.call('ZSCORE', pool_key(root, network, family, 'free'), address)
end

local function is_due(lease, host)
  return lease and lease.host == host and lease.expiresAtMs
end

-- The ranges of a zset that reach to `from` or beyond, in order.
local function ranges_from(key, from)
  local before = range_before(key, from)
  local ranges = redis.call('ZRANGEBYLEX', key, '(' .. from .. '-g', '+', 'LIMIT', 0, AUDITED)
  local full = #ranges == AUDITED and ranges[AUDITED]
  if before then
    table.insert(ranges, 1, before)
  end
  return ranges, full
end

-- What of a pool from an address on is accounted for, in order and without overlaps, and where that ends: at `stop`
-- a part has more than one call reads.
local function account_of(root, network, family, from)
  local key = network_key(root, network)
  local spans, stop = {}, nil
  local function add(first, last)
    table.insert(spans, { first, last })
  end
  local function stop_at(entry)
    local address = entry and string.match(entry, '^%x+')
    stop = address and (not stop or address < stop) and address or stop
  end
  local fresh, full = ranges_from(key .. ':' .. family .. ':fresh', from)
  stop_at(full)
  local first_fresh = redis.call('HGET', key, 'next:' .. family)
  if first_fresh then
    add(bounds_of(first_fresh))
  end
  for _, range in ipairs(fresh) do
    add(bounds_of(range))
  end
  for _, part in ipairs({ 'held', 'last' }) do
    local entries = redis.call(
      'ZRANGEBYLEX', key .. ':' .. family .. ':' .. part, '[' .. from, '+', 'LIMIT', 0, AUDITED)
    stop_at(#entries == AUDITED and entries[AUDITED])
    for _, entry in ipairs(entries) do
      local address = string.match(entry, '^%x+')
      add(address, address)
    end
  end
  table.sort(spans, function(a, b) return a[1] < b[1] end)
  local account, reached = {}, nil
  for _, span in ipairs(spans) do
    if not reached or span[1] > reached then
      table.insert(account, span)
      reached = span[2]
    elseif span[2] > reached then
      account[#account][2] = span[2]
      reached = span[2]
    end
  end
  return account, stop
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
  due = function(root, ask, note)
    local from = tonumber(ask.cursor or 0)
    local ids = redis.call('ZRANGE', due_key(root, ask.host), from, from + AUDITED - 1)
    for _, id in ipairs(ids) do
      if not is_due(lease_of(root, id), ask.host) then
        note({ what = 'due stray', id = id, host = ask.host })
      end
    end
    return #ids == AUDITED and digits(from + AUDITED) or nil
  end,
  macs = function(root, ask, note)
    local key = network_key(root, ask.network)
    local page = redis.call('HSCAN', key, ask.cursor or '0', 'MATCH', 'mac:*', 'COUNT', AUDITED)
    for index = 1, #page[2], 2 do
      local mac, id = string.sub(page[2][index], 5), page[2][index + 1]
      if stray_mac(root, ask.network, mac, id) then
        note({ what = 'mac stray', id = id, mac = mac, network = ask.network })
      end
    end
    return page[1] ~= '0' and page[1] or nil
  end,
  held = function(root, ask, note)
    local network, family = ask.network, ask.family
    return audit_entries(pool_key(root, network, family, 'held'), ask.cursor, function(entry)
      local space = string.find(entry, ' ', 1, true)
      local address, id = string.sub(entry, 1, space - 1), string.sub(entry, space + 1)
      local found = { id = id, address = address, network = network, family = family }
      if stray_holder(root, network, family, address, id) then
        found.what = 'held stray'
        note(found)
      elseif is_open(root, network, family, address) then
        found.what = 'held and free'
        note(found)
      end
    end)
  end,
  -- Nobody holds what is lost, and nobody ever will.
  pool = function(root, ask, note)
    local network, family = ask.network, ask.family
    local from = ask.cursor or string.rep('0', family == '4' and 8 or 32)
    local account, stop = account_of(root, network, family, from)
    local allowed, full = ranges_from(pool_key(root, network, family, 'allowed'), from)
    local next_allowed = full and bounds_of(full)
    if next_allowed and (not stop or next_allowed < stop) then
      stop = next_allowed
    end
    -- At least one address further, whatever is there.
    stop = stop and stop <= from and hex_step(from, 1) or stop
    local whole = {}
    for _, range in ipairs(allowed) do
      local first, last = bounds_of(range)
      first = first < from and from or first
      last = stop and last >= stop and hex_step(stop, -1) or last
      if first <= last then
        table.insert(whole, { first, last })
      end
    end
    for _, range in ipairs(minus(whole, account)) do
      note({
        what = 'lost', id = '-', network = network, family = family,
        address = range[1], last = range[2],
      })
    end
    return stop
  end,
  -- What `free` would give out, and no release has put there.
  free = function(root, ask, note)
    local network, family = ask.network, ask.family
    local from = tonumber(ask.cursor or 0)
    local free = pool_key(root, network, family, 'free')
    local addresses = redis.call('ZRANGE', free, from, from + AUDITED - 1)
    for _, address in ipairs(addresses) do
      if not entry_of(pool_key(root, network, family, 'last'), address)
        and not entry_of(pool_key(root, network, family, 'held'), address) then
        note({ what = 'free stray', id = '-', network = network, family = family, address = address })
      end
    end
    return #addresses == AUDITED and digits(from + AUDITED) or nil
  end,
}

-- audit {part: leases | host | due | macs | held | pool | free, host?, network?, family?, cursor?}
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

redis.register_function({ function_name = 'volt1_audit', callback = audit, flags = { 'no-writes' } })
