-- Checks that the ledger agrees with itself: an entry that gives an address, a MAC or a name to an id or a host has to
-- match a lease. Here are the checks of leases and hosts; those of networks have files of their own. Each part of the
-- ledger is read page by page.
local AUDITED = 100

-- The index entries that a lease must have: the key and entry of each.
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

-- Runs `look`. If it fails on a key of a wrong type, or on an entry that no function has written, notes `unreadable`.
local function look_at(about, note, look)
  local done, reason = pcall(look)
  if not done then
    note({ what = 'unreadable', id = '-', network = about.network, host = about.host,
      reason = unreadable(reason).error.message })
  end
end

local function audit_lease(root, lease, note)
  if not redis.call('ZSCORE', root .. ':roster', lease.host) then
    note({ what = 'roster missing', id = lease.id, host = lease.host })
  end
  if redis.call('HEXISTS', root .. ':leases', hosts_field(lease.network)) == 1
    and not redis.call('ZSCORE', hosts_key(root, lease.network), lease.host) then
    note({ what = 'hosts missing', id = lease.id, network = lease.network })
  end
  if not redis.call('ZSCORE', root .. ':networks', lease.network) then
    note({ what = 'network unlisted', id = lease.id, network = lease.network })
  end
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

-- True if the text of a lease contains all these parts. Names and addresses have no characters that JSON escapes: a
-- part that is found is what the lease says. A part that is not found proves nothing.
local function says(root, id, ...)
  local text = redis.call('HGET', root .. ':leases', id)
  for _, part in ipairs(text and { ... } or {}) do
    if not string.find(text, part, 1, true) then
      return false
    end
  end
  return text
end

-- The id of an entry "network id" of a host, if no lease matches the entry; else nil.
local function stray_id(root, entry, host)
  local network, id = string.match(entry, '^(%S+) (%S+)$')
  if id and says(root, id, '"network":"' .. network .. '"', '"host":"' .. host .. '"') then
    return nil
  end
  local lease
  lease, id = lease_at(root, host, entry)
  return not lease and id or nil
end

local function stray_holder(root, network, family, address, id)
  if says(root, id, '"network":"' .. network .. '"', '"' .. family .. '":"' .. address .. '"') then
    return false
  end
  local lease = lease_of(root, id)
  return not lease or lease.network ~= network or lease.hex[family] ~= address
end

local function stray_mac(root, network, mac, id)
  if says(root, id, '"network":"' .. network .. '"', '"mac":"' .. mac .. '"') then
    return false
  end
  local lease = lease_of(root, id)
  return not lease or lease.network ~= network or lease.mac ~= mac
end

-- Calls `look`, which notes what is wrong, for a page of entries of a zset after the cursor. Answers the next cursor.
local function audit_entries(key, cursor, look)
  local from = cursor and '(' .. cursor or '-'
  local entries = redis.call('ZRANGEBYLEX', key, from, '+', 'LIMIT', 0, AUDITED)
  for _, entry in ipairs(entries) do
    look(entry)
  end
  return #entries == AUDITED and entries[AUDITED] or nil
end

local function is_due(lease, host)
  return lease and lease.host == host and lease.expiresAtMs
end

local AUDITS = {
  leases = function(root, ask, note)
    local page = redis.call('HSCAN', root .. ':leases', ask.cursor or '0', 'COUNT', AUDITED)
    for index = 1, #page[2], 2 do
      local id = page[2][index]
      -- The fields of counts begin with #, which no id does.
      if string.sub(id, 1, 1) ~= '#' then
        local lease = lease_of(root, id)
        if lease then
          look_at({ network = lease.network, host = lease.host }, note, function()
            audit_lease(root, lease, note)
          end)
        else
          note({ what = 'lease unreadable', id = id })
        end
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
  -- Counts of keys that belong to the whole ledger.
  meta = function(root, _, note)
    local meta = redis.call('HMGET', root .. ':meta', 'revision', 'roster', 'gone:4', 'gone:6')
    if tonumber(redis.call('HGET', root .. ':leases', GENERATION) or 0) > 0
      and not (tonumber(meta[1] or nil) and tonumber(meta[2] or nil)) then
      note({ what = 'meta missing', id = '-' })
    end
    if changes_missing(root) then
      note({ what = 'changes missing', id = '-' })
    end
    if missing_from(root, '#networks', root .. ':networks') > 0 then
      note({ what = 'networks missing', id = '-' })
    end
    if missing_from(root, '#revised', root .. ':revised') > 0
      or redis.call('HEXISTS', root .. ':leases', '#revised') == 1
      and not tonumber(redis.call('HGET', root .. ':meta', 'revisedFrom') or nil) then
      note({ what = 'revised missing', id = '-' })
    end
    for index, family in ipairs(FAMILIES) do
      local subnets = root .. ':subnets:' .. family
      if missing_from(root, '#subnets:' .. family, subnets) > 0 then
        note({ what = 'subnets missing', id = '-', family = family })
      end
      if missing_from(root, '#leaving:' .. family, leaving_key(root, family)) > 0 or garbage_leaving(root, family) then
        note({ what = 'leaving missing', id = '-', family = family })
      end
      for _, network in ipairs(gone_without_hosts(root, family)) do
        note({ what = 'hosts missing', id = '-', network = network })
      end
      local until_ms = meta[2 + index] and tonumber(meta[2 + index])
      if until_ms and until_ms > now_ms(root) and redis.call('EXISTS', root .. ':gone:' .. family) == 0 then
        note({ what = 'gone missing', id = '-', family = family })
      end
    end
  end,
  -- Live or suspect hosts that are missing in the roster.
  members = function(root, ask, note)
    local from = tonumber(ask.cursor or 0)
    local hosts = redis.call('ZRANGE', root .. ':' .. ask.list, from, from + AUDITED - 1)
    for _, host in ipairs(hosts) do
      if not redis.call('ZSCORE', root .. ':roster', host) then
        note({ what = 'roster missing', id = '-', host = host })
      end
    end
    return #hosts == AUDITED and digits(from + AUDITED) or nil
  end,
  session = function(root, ask, note)
    local host = ask.host
    if not redis.call('HGET', root .. ':host:' .. host, 'machineId') then
      note({ what = 'session missing', id = '-', host = host })
    end
    if not redis.call('ZSCORE', root .. ':hosts', host) and not redis.call('ZSCORE', root .. ':suspects', host) then
      note({ what = 'state missing', id = '-', host = host })
    end
  end,
}
