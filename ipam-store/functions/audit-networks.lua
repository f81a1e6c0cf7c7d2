-- Checks that the addresses and MACs of a network agree with its leases, and that no address of its pools is lost.

-- True for an address that could be granted, even if it is held.
local function is_open(root, network, family, address)
  return is_in(pool_key(root, network, family, 'fresh'), address)
    or is_next(root, network, family, address)
    or entry_of(pool_key(root, network, family, 'last'), address)
    or redis.call('ZSCORE', pool_key(root, network, family, 'free'), address)
end

-- A page of the ranges of a zset that reach to `from` or beyond, in order; and its last range, if the page is full.
local function ranges_from(key, from)
  local before = range_before(key, from)
  local ranges = redis.call('ZRANGEBYLEX', key, '(' .. from .. '-g', '+', 'LIMIT', 0, AUDITED)
  local full = #ranges == AUDITED and ranges[AUDITED]
  if before then
    table.insert(ranges, 1, before)
  end
  return ranges, full
end

-- The addresses of a pool, from one address on, that are fresh, held or released: ranges in order, without overlaps.
-- And `stop`, where they end because a part has more entries than one call reads.
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

AUDITS.macs = function(root, ask, note)
  local key = network_key(root, ask.network)
  local page = redis.call('HSCAN', key, ask.cursor or '0', 'MATCH', 'mac:*', 'COUNT', AUDITED)
  for index = 1, #page[2], 2 do
    local mac, id = string.sub(page[2][index], 5), page[2][index + 1]
    if stray_mac(root, ask.network, mac, id) then
      note({ what = 'mac stray', id = id, mac = mac, network = ask.network })
    end
  end
  return page[1] ~= '0' and page[1] or nil
end

AUDITS.held = function(root, ask, note)
  local network, family = ask.network, ask.family
  return audit_entries(pool_key(root, network, family, 'held'), ask.cursor, function(entry)
    local address, id = string.match(entry, '^(%x+) (%S+)$')
    local found = { id = id, address = address, network = network, family = family }
    if not address then
      note({ what = 'held unreadable', id = '-', network = network, family = family, entry = entry })
    elseif stray_holder(root, network, family, address, id) then
      found.what = 'held stray'
      note(found)
    elseif is_open(root, network, family, address) then
      found.what = 'held and free'
      note(found)
    end
  end)
end

-- A lost address is neither fresh, held nor released: nobody holds it, and it is never granted.
AUDITS.pool = function(root, ask, note)
  local network, family = ask.network, ask.family
  local from = ask.cursor or string.rep('0', family == '4' and 8 or 32)
  local account, stop = account_of(root, network, family, from)
  local allowed, full = ranges_from(pool_key(root, network, family, 'allowed'), from)
  local next_allowed = full and bounds_of(full)
  if next_allowed and (not stop or next_allowed < stop) then
    stop = next_allowed
  end
  -- Each call goes on by at least one address.
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
end

-- Addresses in `free` that no release has put there.
AUDITS.free = function(root, ask, note)
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
end

