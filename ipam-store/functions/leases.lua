-- Requests for leases come in batches. All requests of a batch are of one host and one network. Each has a result of
-- its own, which is one line of the answer, and sees the changes of the requests before it.
local MAX_BATCHES = 4096
local FAMILIES_OF = { ['-'] = {}, ['4'] = { '4' }, ['6'] = { '6' }, ['46'] = FAMILIES }

-- The line of one request; a refusal is JSON. If the library itself fails on a request, the others still get answers.
local function line_of(work, ...)
  local done, refusal, line = pcall(work, ...)
  if done then
    return line or reply_of(refusal)
  end
  return reply_of(unreadable(refusal))
end

-- One refusal, repeated for `count` requests.
local function refuse_all(count, refusal)
  local line = reply_of(refusal)
  return string.rep(line .. '\n', count - 1) .. line
end

local function due_key(root, host)
  return root .. ':host:' .. host .. ':due'
end

local function note_due(batch, id, expires_at)
  if expires_at then
    redis.call('ZADD', due_key(batch.root, batch.host), expires_at, id)
  end
end

-- Stores a new lease and, in the same command, how many addresses are held now.
local function add_lease(batch, id, json, generation)
  local counted, fields, families = batch.memory.counted, batch.count_fields, batch.families
  if #families == 1 then
    local field = fields[families[1]]
    local count = counted[field] + 1
    redis.call('HSET', batch.leases, id, json, GENERATION, generation, field, count)
    counted[field] = count
  elseif #families == 2 then
    local ipv4, ipv6 = fields['4'], fields['6']
    local count4, count6 = counted[ipv4] + 1, counted[ipv6] + 1
    redis.call('HSET', batch.leases, id, json, GENERATION, generation, ipv4, count4, ipv6, count6)
    counted[ipv4], counted[ipv6] = count4, count6
  else
    redis.call('HSET', batch.leases, id, json, GENERATION, generation)
  end
end

-- True if a lease has the content that a request asks for.
local function is_same(lease, batch, ask, asked)
  if lease.workload ~= asked.workload or lease.kind ~= asked.kind or lease.network ~= asked.network then
    return false
  end
  if ask.mac_asked and lease.mac ~= asked.mac then
    return false
  end
  for _, family in ipairs(batch.families) do
    local address = asked_of(ask[family])
    if address and lease.hex[family] ~= address then
      return false
    end
  end
  return true
end

-- The refusal of a request whose id has a lease of another host or with other content; nil for the same content.
local function unlike(lease, batch, ask, asked)
  if lease.host ~= batch.host then
    return refuse('WRONG_HOST', ask.id .. ' is held by host ' .. lease.host, { host = lease.host })
  end
  if is_same(lease, batch, ask, asked) then
    return nil
  end
  return refuse('ALREADY_ATTACHED', ask.id .. ' has a lease of other content',
    { id = ask.id, generation = lease.generation })
end

-- Renews the lease of a repeated request. Writes it even if nothing has changed, so that a WAIT afterwards covers it.
local function renew(batch, ask, before)
  local lease = lease_of(batch.root, ask.id)
  if not lease then
    return contradiction('the lease of ' .. ask.id .. ' cannot be read')
  end
  local asked = cjson.decode(ask.head .. '}')
  local refusal = unlike(lease, batch, ask, asked)
  if refusal then
    return refusal
  end
  lease.bootId = asked.bootId
  lease.hostname = asked.hostname
  if ask.ttl_ms then
    lease.expiresAtMs = digits(batch.now + ask.ttl_ms)
  end
  local json = cjson.encode(lease)
  redis.call('HSET', batch.leases, ask.id, json, GENERATION, digits(batch.memory.generation))
  note_due(batch, ask.id, lease.expiresAtMs)
  if json ~= before then
    append(batch.root, batch.name, batch.now, CHANGED, ask.id)
  end
  return nil, '{"lease":' .. json .. '}'
end

-- Decides what an id without a lease is granted: for each family an address, or false for the next fresh address.
local function decide(batch, ask)
  local closed = not batch.network and closed_network(batch)
  if closed then
    batch.network = false
    return closed
  end
  local picked = {}
  for index, family in ipairs(batch.families) do
    local refusal, address = pick(batch, ask, family)
    if refusal then
      return refusal
    end
    picked[index] = address or false
  end
  local holder = redis.call('HGET', batch.key, 'mac:' .. ask.mac)
  if holder then
    return refuse('MAC_IN_USE', ask.mac .. ' is held by ' .. holder,
      { mac = ask.mac, id = holder, network = batch.name })
  end
  return nil, picked
end

local function grant(batch, ask)
  local refusal, picked = decide(batch, ask)
  if refusal then
    return refusal
  end
  -- If the entry is there already, the host has this lease and the ledger has lost it: nothing is changed.
  if redis.call('ZADD', batch.host_ids, '0', batch.name .. ' ' .. ask.id) == 0 then
    return contradiction('the lease of ' .. ask.id .. ' has vanished')
  end
  if not batch.entered then
    enter_network(batch.root, batch.host, batch.name, tonumber(batch.revision))
    batch.entered = true
  end
  local changes = { 'mac:' .. ask.mac, ask.id }
  local addresses, hex, before = '', '', ''
  for index, family in ipairs(batch.families) do
    local address = picked[index]
    if address then
      local text = take_picked(batch, family, address, ask.id)
      if text then
        before = before .. (before == '' and '"' or ',"') .. family .. '":"' .. text .. '"'
      end
    else
      address = take_next(batch, family, ask.id, changes)
    end
    addresses = addresses .. ' ' .. address
    hex = hex .. (hex == '' and '"' or ',"') .. family .. '":"' .. address .. '"'
  end
  -- Written now, not at the end of the batch: these addresses stay taken even if a later request fails.
  redis.call('HSET', batch.key, unpack(changes))
  -- A generation is epoch * 2^32 + n, in one counter.
  batch.memory.generation = batch.memory.generation + 1
  local generation = digits(batch.memory.generation)
  local expires_at = ask.ttl_ms and digits(batch.now + ask.ttl_ms)
  local json = ask.head
    .. ',"generation":"' .. generation
    .. '","grantedAtMs":"' .. batch.now_digits
    .. (expires_at and '","expiresAtMs":"' .. expires_at or '')
    .. '","hex":{' .. hex .. '},"before":{' .. before .. '}}'
  add_lease(batch, ask.id, json, generation)
  note_due(batch, ask.id, expires_at)
  write_entry(batch.log, generation .. '-' .. batch.now_digits .. '000', CHANGED, ask.id)
  return nil, 'granted ' .. generation .. ' ' .. batch.now_digits .. ' ' .. (expires_at or '-') .. addresses
end

-- The addresses of "address,address…" as a set, and their number; the set is nil for none.
local function avoided_in(text)
  local avoided, count = nil, 0
  for address in string.gmatch(text, '%x+') do
    avoided = avoided or {}
    avoided[address] = true
    count = count + 1
  end
  return avoided, count
end

-- What all requests of a batch share, parsed from its text: "host machine network revision families"; from agents since
-- 1.7 also " agent boot"; then, if there are any, " address,address…": the host's own addresses, which are not granted.
local function open_batch(root, text)
  local memory = memory_of(root)
  local batch = memory.batches[text]
  if not batch then
    local host, machine, name, revision, families, agent, boot, own =
      string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) ?(%S*) ?(%S*) ?(%S*)$')
    local avoided, avoided_count = avoided_in(own)
    batch = {
      root = root,
      host = host,
      who = who_of({ machineId = machine, agentId = agent ~= '' and agent, bootId = boot ~= '' and boot }),
      name = name,
      revision = revision,
      families = FAMILIES_OF[families],
      avoided = avoided,
      avoided_count = avoided_count,
      key = network_key(root, name),
      leases = root .. ':leases',
      log = log_key(root, name),
      host_ids = ids_key(root, host),
      memory = memory,
      held_keys = { ['4'] = pool_key(root, name, '4', 'held'), ['6'] = pool_key(root, name, '6', 'held') },
      count_fields = { ['4'] = held_field(name, '4'), ['6'] = held_field(name, '6') },
    }
    -- Parsing a text is cheap, so all are forgotten, not only the oldest.
    if memory.batch_count == MAX_BATCHES then
      memory.batches, memory.batch_count = {}, 0
    end
    memory.batches[text] = batch
    memory.batch_count = memory.batch_count + 1
  end
  batch.network = false
  batch.is_preview = false
  batch.now = now_ms(root)
  batch.now_digits = digits(batch.now)
  return batch
end

-- One request of a batch, from the arguments of acquire.
local function ask_at(args, at)
  return {
    id = args[at],
    workload = args[at + 1],
    mac = args[at + 2],
    mac_asked = args[at + 3] == '1',
    ttl_ms = tonumber(args[at + 4]),
    ['4'] = args[at + 5],
    ['6'] = args[at + 6],
    head = args[at + 7],
  }
end

-- acquire: ARGV "host machine network revision families agent boot avoided" (open_batch), where families is 4, 6, 46 or
-- -. Then eight arguments for each request: id, workload, mac, mac_asked (1 or 0), ttl_ms (- for no expiry), ipv4,
-- ipv6, head. ipv4 and ipv6 are -, the address that is asked for, or "r" and the reserved address. head is the lease as
-- it will be stored, JSON without its closing brace: {"id", "workload", "kind", "network", "host", "bootId",
-- "hostname"?, "mac", "lengths": {"4": 24}.
-- -> for each request a line: "granted generation grantedAtMs expiresAtMs address…" (- for no expiry), or {lease} if
-- the lease was there already
local function acquire(keys, args)
  local root = keys[1]
  local batch = open_batch(root, args[1])
  look_at_server(root, batch.now)
  local closed = barred(root, batch.host, batch.who)
  if closed then
    return refuse_all((#args - 1) / 8, closed)
  end
  local lines = {}
  for at = 2, #args, 8 do
    local ask = ask_at(args, at)
    local held = redis.call('HMGET', batch.leases, ask.id, GENERATION)
    if tonumber(held[2]) == batch.memory.generation then
      lines[#lines + 1] = line_of(held[1] and renew or grant, batch, ask, held[1])
    else
      -- The data is not what this server wrote: it was emptied or replaced.
      lines[#lines + 1] = reply_of(disarm(root))
    end
  end
  return table.concat(lines, '\n')
end

local function preview_one(batch, ask, text)
  if text then
    local lease = lease_of(batch.root, ask.id)
    if not lease then
      return contradiction('the lease of ' .. ask.id .. ' cannot be read')
    end
    local refusal = unlike(lease, batch, ask, cjson.decode(ask.head .. '}'))
    return refusal, not refusal and '{"lease":' .. text .. '}'
  end
  local refusal, picked = decide(batch, ask)
  if refusal then
    return refusal
  end
  local addresses = ''
  for index, family in ipairs(batch.families) do
    local address = picked[index] or bounds_of(batch.network[NEXT[family]])
    addresses = addresses .. ' ' .. address
  end
  local generation = digits(batch.memory.generation + 1)
  local expires_at = ask.ttl_ms and digits(batch.now + ask.ttl_ms)
  return nil, 'granted ' .. generation .. ' ' .. batch.now_digits .. ' ' .. (expires_at or '-') .. addresses
end

-- preview: ARGV as acquire, with one request -> what acquire would answer now. Changes nothing.
local function preview(keys, args)
  local batch = open_batch(keys[1], args[1])
  local closed = barred(keys[1], batch.host, batch.who)
  if closed then
    return reply_of(closed)
  end
  batch.is_preview = true
  local ask = ask_at(args, 2)
  local held = redis.call('HMGET', batch.leases, ask.id, GENERATION)
  if tonumber(held[2]) ~= batch.memory.generation then
    return reply_of(disarm(keys[1]))
  end
  return line_of(preview_one, batch, ask, held[1])
end

local function end_lease(root, lease, now, cool)
  for family, address in pairs(lease.hex) do
    local text = lease.before[family]
    if cool then
      text = digits(now) .. ' ' .. lease.workload
    end
    give_back(root, lease.network, family, address, lease.id, text)
  end
  redis.call('HDEL', network_key(root, lease.network), 'mac:' .. lease.mac)
  redis.call('HDEL', root .. ':leases', lease.id)
  redis.call('ZREM', ids_key(root, lease.host), lease.network .. ' ' .. lease.id)
  if lease.expiresAtMs then
    redis.call('ZREM', due_key(root, lease.host), lease.id)
  end
  append(root, lease.network, now, CHANGED, lease.id)
end

local function release_one(root, host, now, young, ask)
  local id, generation, cool = string.match(ask, '^(%S+) (%S+) (%S+)$')
  local lease = lease_of(root, id)
  if not lease and redis.call('HEXISTS', root .. ':leases', id) == 1 then
    return contradiction('the lease of ' .. id .. ' cannot be read')
  end
  if not lease then
    return nil, '{"released":false}'
  end
  if lease.host ~= host then
    return refuse('WRONG_HOST', id .. ' is held by host ' .. lease.host, { host = lease.host })
  end
  if lease.generation ~= generation then
    return refuse('STALE_GENERATION',
      id .. ' has generation ' .. lease.generation .. ', not ' .. generation,
      { id = id, generation = lease.generation })
  end
  if young and lease.bootId ~= young then
    return recovering(id .. ' is of an earlier boot of host ' .. host .. ', which may live yet: not ended so soon')
  end
  end_lease(root, lease, now, cool == '1')
  return nil, '{"released":true,"network":"' .. lease.network .. '"}'
end

-- give_back: ARGV "host machine agent boot", agents before 1.7 without the last two; then each lease as "id generation
-- cool", cool 1 or 0. -> for each lease a line: {released, network?}
-- release: the same for agents before 1.5, which do not name their machine: ARGV host; then the leases.
local function release(keys, args)
  local root = keys[1]
  local host, machine, agent, boot = string.match(args[1], '^(%S+) ?(%S*) ?(%S*) ?(%S*)$')
  local who = machine ~= '' and who_of({
    machineId = machine,
    agentId = agent ~= '' and agent,
    bootId = boot ~= '' and boot,
  })
  local closed = unarmed(root) or foreign(root, host, who)
  if closed then
    return refuse_all(#args - 1, closed)
  end
  local now = now_ms(root)
  local young = young_boot(root, host, now)
  local lines = {}
  for index = 2, #args do
    lines[index - 1] = line_of(release_one, root, host, now, young, args[index])
  end
  return table.concat(lines, '\n')
end

-- lease {id} -> the lease or null
local function get_lease(keys, args)
  local id = cjson.decode(args[1]).id
  local text = redis.call('HGET', keys[1] .. ':leases', id)
  if text and not lease_of(keys[1], id) then
    return reply_of(contradiction('the lease of ' .. id .. ' cannot be read'))
  end
  return text or 'null'
end

-- leases {network?, host?, cursor?, limit} -> {leases, cursor?, nowMs (text)}, by host, network and id; each with
-- `suspect`. The cursor is "host network id", or "host " if nothing of that host was read yet.
local function list_leases(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local from_host, from_entry = string.match(ask.cursor or '', '^(%S+) (.*)$')
  local hosts = { ask.host }
  if not ask.host then
    local from = from_host and '[' .. from_host or '-'
    hosts = redis.call('ZRANGEBYLEX', root .. ':roster', from, '+', 'LIMIT', 0, MAX_HOSTS + 1)
  end
  local limit = math.min(ask.limit, MAX_PAGE)
  local prefix = ask.network and ask.network .. ' ' or ''
  -- An entry without a lease counts too: otherwise a full page of them would end the list.
  local items, bytes, count, last = {}, 0, 0, nil
  local function answer(cursor)
    return '{"leases":' .. json_list(items) .. ',"cursor":' .. cjson.encode(cursor or cjson.null)
      .. ',"nowMs":"' .. digits(now_ms(root)) .. '"}'
  end
  for index, host in ipairs(hosts) do
    if index > MAX_HOSTS then
      return answer(host .. ' ')
    end
    local suspect = redis.call('ZSCORE', root .. ':suspects', host) and true or false
    local from = host == from_host and from_entry ~= '' and '(' .. from_entry or '[' .. prefix
    local entries = redis.call('ZRANGEBYLEX', ids_key(root, host), from, '(' .. prefix .. '\255',
      'LIMIT', 0, limit - count + 1)
    for _, entry in ipairs(entries) do
      local lease, _, text = lease_at(root, host, entry)
      -- The stored text itself: decoding and encoding it would cost more.
      local item = lease and string.match(text, '^(.*)}%s*$') .. ',"suspect":' .. tostring(suspect) .. '}' or ''
      bytes = bytes + #item
      if count > 0 and (count == limit or bytes > MAX_PAGE_BYTES) then
        return answer(last)
      end
      if lease then
        table.insert(items, item)
      end
      count = count + 1
      last = host .. ' ' .. entry
    end
  end
  return answer(nil)
end

redis.register_function('volt1_acquire', acquire)
redis.register_function({ function_name = 'volt1_preview', callback = preview, flags = { 'no-writes' } })
-- Allowed when Redis is out of memory: it frees some.
redis.register_function({ function_name = 'volt1_give_back', callback = release, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_release', callback = release, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_lease', callback = get_lease, flags = { 'no-writes' } })
redis.register_function({ function_name = 'volt1_leases', callback = list_leases, flags = { 'no-writes' } })
