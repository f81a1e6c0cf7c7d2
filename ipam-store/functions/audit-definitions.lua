-- Checks that networks agree with their definitions, that their names and subnets are in the indexes, and that released
-- addresses are in all keys that they belong in.

-- The first field of a network's hash that does not agree with the network's definition, as an agent has parsed it.
local function differs(root, network, definition)
  local fields = redis.call('HMGET', network_key(root, network), 'digest', 'type', 'delayMs', 'reclaimMs')
  local wanted = {
    -- An agent of another version may make another digest of the same definition.
    fields[1] or definition.digest, definition.type, digits(definition.delayMs),
    definition.reclaimMs and digits(definition.reclaimMs) or false,
  }
  for index, field in ipairs({ 'digest', 'type', 'delayMs', 'reclaimMs' }) do
    if fields[index] ~= wanted[index] then
      return field
    end
  end
  for _, family in ipairs(FAMILIES) do
    local rules = definition.families[family]
    if rules and not has_rules(root, network, family, rules)
      or not rules and redis.call('HEXISTS', network_key(root, network), 'family:' .. family) == 1 then
      return 'family:' .. family
    end
  end
  return nil
end

-- True if the allowed ranges are not those of the definition, or if fresh ranges overlap or are not allowed.
local function pool_differs(root, network, family, ranges)
  if not has_exactly(pool_key(root, network, family, 'allowed'), ranges) then
    return true
  end
  local spans = redis.call('ZRANGE', pool_key(root, network, family, 'fresh'), 0, -1)
  table.insert(spans, redis.call('HGET', network_key(root, network), 'next:' .. family) or nil)
  local fresh = {}
  for index, span in ipairs(spans) do
    local first, last = string.match(span, '^(%x+)%-(%x+)$')
    if not first then
      return true
    end
    fresh[index] = { first, last }
  end
  table.sort(fresh, function(a, b) return a[1] < b[1] end)
  for index = 2, #fresh do
    if fresh[index][1] <= fresh[index - 1][2] then
      return true
    end
  end
  return #minus(fresh, pairs_of(ranges)) > 0
end

-- True for a revision from the time before changes were kept.
local function knows_as_before(root, revision)
  return revision <= (tonumber(redis.call('HGET', root .. ':meta', 'revisedFrom') or 0) or 0)
end

-- Compares a network with its definition. No difference is about a lease, so the id is always -.
AUDITS.definition = function(root, ask, note)
  local network, definition = ask.network, ask.definition
  local held = redis.call('HMGET', network_key(root, network), 'revision', 'unfinished')
  if tonumber(held[1] or nil) ~= ask.revision or held[2] then
    return
  end
  if ask.revision > (tonumber(redis.call('HGET', root .. ':meta', 'revision') or nil) or 0) then
    note({ what = 'meta missing', id = '-' })
  end
  local field = differs(root, network, definition)
  if field then
    note({ what = 'network differs', id = '-', network = network, field = field })
  end
  if not redis.call('ZSCORE', root .. ':networks', network) then
    note({ what = 'network unlisted', id = '-', network = network })
  end
  if redis.call('HEXISTS', root .. ':leases', '#revised') == 1
    and redis.call('ZSCORE', root .. ':revised', network) ~= digits(ask.revision)
    and not knows_as_before(root, ask.revision) then
    note({ what = 'revised differs', id = '-', network = network })
  end
  for family, rules in pairs(definition.families) do
    local entry = rules.first .. '-' .. rules.last .. ' ' .. network
    if not redis.call('ZSCORE', root .. ':subnets:' .. family, entry) then
      note({ what = 'subnet missing', id = '-', network = network, family = family })
    end
    if pool_differs(root, network, family, rules.allowed) then
      note({ what = 'pool differs', id = '-', network = network, family = family })
    end
  end
end

-- A page of names of networks, each with definition and revision. A name without a readable definition is a difference.
local function audited_names(root, ask, note)
  local names = redis.call('ZRANGEBYLEX', root .. ':networks', ask.cursor and '(' .. ask.cursor or '-', '+',
    'LIMIT', 0, AUDITED)
  local items, bytes, last = {}, 0, nil
  for index, name in ipairs(names) do
    local held = {}
    look_at({ network = name }, note, function()
      held = redis.call('HMGET', network_key(root, name), 'network', 'revision', 'unfinished')
      held[3] = held[3] or is_unsorted(root, name)
    end)
    local text = held[1] and decoded(held[1]) and tonumber(held[2]) and held[1]
    if text and held[3] then
      -- The network is checked when its change is finished.
      note({ what = 'network unfinished', id = '-', network = name })
    elseif not text then
      note({ what = 'network missing', id = '-', network = name })
    elseif index > 1 and bytes + #text > MAX_PAGE_BYTES then
      return items, last
    else
      bytes = bytes + #text
      table.insert(items, cjson.encode({ name = name, network = text, revision = tonumber(held[2]) }))
    end
    last = name
  end
  return items, #names == AUDITED and last or nil
end

AUDITS.subnets = function(root, ask, note)
  local family = ask.family
  return audit_entries(root .. ':subnets:' .. family, ask.cursor, function(entry)
    local first, last, name = string.match(entry, '^(%x+)%-(%x+) (%S+)$')
    local text, deleting
    look_at({ network = name }, note, function()
      text = name and redis.call('HGET', network_key(root, name), 'family:' .. family)
      deleting = name and is_deleting(root, name)
    end)
    local rules = text and decoded(text)
    if deleting then
      note({ what = 'network unfinished', id = '-', network = name })
      return
    end
    if rules and (rules.first ~= first or rules.last ~= last) then
      note({ what = 'subnet stray', id = '-', network = name, family = family, entry = entry })
    elseif not rules and name and redis.call('EXISTS', network_key(root, name)) == 0 then
      note({ what = 'network missing', id = '-', network = name })
    elseif not name then
      note({ what = 'subnet stray', id = '-', network = '-', family = family, entry = entry })
    end
    if name and rules and not redis.call('ZSCORE', root .. ':networks', name) then
      note({ what = 'network unlisted', id = '-', network = name })
    end
  end)
end

AUDITS.gone = function(root, ask, note)
  local family = ask.family
  return audit_entries(root .. ':gone:' .. family, ask.cursor, function(entry)
    if not string.match(entry, '^%x+ %d+ %S+$') then
      note({ what = 'gone unreadable', id = '-', family = family, entry = entry })
    end
  end)
end

-- A released address must be in `by`, and in `free` if the pool gives it out.
AUDITS.last = function(root, ask, note)
  local network, family = ask.network, ask.family
  return audit_entries(pool_key(root, network, family, 'last'), ask.cursor, function(entry)
    local address, at, workload = string.match(entry, '^(%x+) (%d+) (%S+)$')
    if not address then
      note({ what = 'last unreadable', id = '-', network = network, family = family, entry = entry })
    elseif tonumber(at) >= UNTIL_LET_GO
      and not redis.call('ZSCORE', leaving_key(root, family), address .. ' ' .. string.sub(workload, 2)) then
      note({ what = 'leaving missing', id = '-', network = network, family = family, address = address, entry = entry })
    elseif not redis.call('ZSCORE', pool_key(root, network, family, 'by'), workload .. ' ' .. address) then
      note({ what = 'by missing', id = '-', network = network, family = family, address = address })
    elseif is_in(pool_key(root, network, family, 'allowed'), address)
      and redis.call('ZSCORE', pool_key(root, network, family, 'free'), address) ~= at then
      note({ what = 'free missing', id = '-', network = network, family = family, address = address })
    end
  end)
end

AUDITS.by = function(root, ask, note)
  local network, family = ask.network, ask.family
  return audit_entries(pool_key(root, network, family, 'by'), ask.cursor, function(entry)
    local workload, address = string.match(entry, '^(%S+) (%x+)$')
    local text = address and entry_of(pool_key(root, network, family, 'last'), address)
    local _, owner = time_and_workload(text or '')
    if not text or owner ~= workload then
      note({
        what = 'by stray', id = '-', network = network, family = family, address = address, entry = entry,
      })
    end
  end)
end

-- The last check of a network: by now the audit has looked for each of its leases.
AUDITS.count = function(root, ask, note)
  local network = ask.network
  local wrong = redis.call('HEXISTS', network_key(root, network), 'unchecked') == 1
  for _, family in ipairs(FAMILIES) do
    local counted = redis.call('HGET', root .. ':leases', held_field(network, family))
    wrong = wrong or counted
      and tonumber(counted) ~= redis.call('ZCARD', pool_key(root, network, family, 'held'))
  end
  if redis.call('HEXISTS', root .. ':leases', hosts_field(network)) == 1 and not knows_hosts(root, network) then
    note({ what = 'hosts missing', id = '-', network = network })
  end
  if wrong then
    note({ what = 'count', id = '-', network = network })
  end
end

-- Checks may use one part in this many of the server's time.
local AUDIT_SHARE = 5
-- Checks may be ahead of that by this much, so that not each short step waits. No step takes more than AUDIT_MOST_MS.
local AUDIT_AHEAD_MS = 20
local AUDIT_MOST_MS = 10000
-- The time that a full page, and any other page, counts at least: from 7.2 on, Redis stops the clock in a function.
local FULL_PAGE_MS, OTHER_PAGE_MS = 2, 0.2

-- audit {part: leases | meta | roster | members | session | host | due | names | definition | gone | macs | held |
--        last | by | free | pool | count | subnets, list?, host?, network?, definition?, revision?, family?, cursor?}
-- -> {differences: [{what, id, …}…], cursor?, networks: [{name, network (JSON), revision}…], hosts: [host…]}, or
-- {waitMs}: all checks of a fleet together may use a fifth of the server's time, and have used it for now
local function audit(keys, args)
  local root = keys[1]
  local memory, started = memory_of(root), redis.call('TIME')
  local now = tonumber(started[1]) * 1000 + tonumber(started[2]) / 1000
  -- Nobody waits because the clock was set back.
  local paid_ms = memory.audit_paid_ms or 0
  paid_ms = paid_ms > now + AUDIT_MOST_MS and 0 or paid_ms
  if paid_ms > now + AUDIT_AHEAD_MS then
    return reply_of({ waitMs = math.ceil(paid_ms - now) })
  end
  local ask = cjson.decode(args[1])
  if ask.definition then
    flat_definition(ask.definition)
  end
  local found, networks, hosts, cursor = {}, {}, {}, nil
  local function note(difference)
    table.insert(found, cjson.encode(difference))
  end
  look_at(ask, note, function()
    if ask.part == 'roster' then
      cursor = audit_entries(root .. ':roster', ask.cursor, function(host)
        table.insert(hosts, cjson.encode(host))
      end)
    elseif ask.part == 'names' then
      networks, cursor = audited_names(root, ask, note)
    else
      cursor = AUDITS[ask.part](root, ask, note)
    end
  end)
  local ended = redis.call('TIME')
  local took_ms = (ended[1] - started[1]) * 1000 + (ended[2] - started[2]) / 1000
  local least_ms = cursor and FULL_PAGE_MS or OTHER_PAGE_MS
  memory.audit_paid_ms = math.max(paid_ms, now) + math.max(least_ms, took_ms) * AUDIT_SHARE
  return '{"differences":' .. json_list(found) .. ',"networks":' .. json_list(networks)
    .. ',"hosts":' .. json_list(hosts) .. ',"cursor":' .. cjson.encode(cursor or cjson.null) .. '}'
end

redis.register_function({ function_name = 'volt1_audit', callback = audit, flags = { 'no-writes' } })
