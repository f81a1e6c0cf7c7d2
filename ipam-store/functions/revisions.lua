-- Changes of networks in the order of their revisions, so that a host reads only the changes that it has missed.
local MAX_CHANGES = 500
-- How many deletions of networks are remembered; a host that has missed more reads all networks.
local MAX_GONE = 256

-- Forgets the oldest deletions. This is done rarely, since it walks all names.
local function trim_revised(root)
  local revised, networks = root .. ':revised', root .. ':networks'
  if redis.call('ZCARD', revised) - redis.call('ZCARD', networks) <= 2 * MAX_GONE then
    return
  end
  local left = MAX_GONE
  local entries = redis.call('ZRANGE', revised, 0, -1, 'WITHSCORES')
  for index = 1, #entries, 2 do
    if left > 0 and not redis.call('ZSCORE', networks, entries[index]) then
      left = left - 1
      keep_count(root, '#revised', revised, -redis.call('ZREM', revised, entries[index]))
      redis.call('HSET', root .. ':meta', 'revisedFrom', entries[index + 1])
    end
  end
end

-- Notes that a network has changed, or was deleted.
local function note_revised(root, name, revision)
  local revised = root .. ':revised'
  if redis.call('HEXISTS', root .. ':leases', '#revised') == 0 then
    -- An earlier library has not kept the changes before this one.
    redis.call('HSET', root .. ':meta', 'revisedFrom', digits(revision - 1))
  end
  keep_count(root, '#revised', revised, redis.call('ZADD', revised, digits(revision), name))
  trim_revised(root)
end

-- False if not every change since a revision is known: then all networks have to be read.
local function knows_changes_since(root, since)
  local from = tonumber(redis.call('HGET', root .. ':meta', 'revisedFrom') or nil)
  return from and since >= from and redis.call('HEXISTS', root .. ':leases', '#revised') == 1
    and missing_from(root, '#revised', root .. ':revised') == 0
end

-- The last change of a network: JSON of {name, revision, network?}, without `network` if it was deleted; nil if its
-- definition has vanished.
local function change_of(root, name, revision)
  local held = redis.call('HMGET', network_key(root, name), 'network', 'revision')
  if held[1] and tonumber(held[2]) and decoded(held[1]) then
    return cjson.encode({ name = name, revision = tonumber(held[2]), network = held[1] })
  end
  if redis.call('ZSCORE', root .. ':networks', name) then
    return nil
  end
  return cjson.encode({ name = name, revision = tonumber(revision) })
end

-- network_changes {host?, since, limit, letGoAfter?} -> {networks: [{name, revision, network (JSON)?}…], revision,
-- more, whole, letGo: [{network, address}…], letGoTo?}, by revision. A network without `network` was deleted. revision:
-- the answer has the changes up to this one; whole: no change is told, since all networks have to be read
-- (network_list); letGo: addresses that the host may still have; letGoTo: letGo has only addresses that changes up to
-- this revision have opened.
local function network_changes(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local last = meta_of(root).revision
  if last < ask.since then
    return reply_of(recovering('the ledger knows of no revision ' .. ask.since))
  end
  local left, to = {}, nil
  if ask.host then
    left, to = to_let_go(root, ask.host, ask.letGoAfter)
  end
  local let_go = ',"letGo":' .. json_list(left) .. (to and ',"letGoTo":' .. to or '')
  if last > ask.since and not knows_changes_since(root, ask.since) then
    return '{"networks":[],"revision":' .. digits(last) .. ',"more":false,"whole":true' .. let_go .. '}'
  end
  local limit = math.min(ask.limit or MAX_CHANGES, MAX_CHANGES)
  local entries = redis.call('ZRANGEBYSCORE', root .. ':revised', '(' .. digits(ask.since), '+inf', 'WITHSCORES',
    'LIMIT', 0, limit + 1)
  local items, bytes, more = {}, 0, false
  for index = 1, #entries, 2 do
    local item = change_of(root, entries[index], entries[index + 1])
    if not item then
      return reply_of(contradiction('the definition of network ' .. entries[index] .. ' has vanished'))
    end
    bytes = bytes + #item
    if #items > 0 and (#items == limit or bytes > MAX_PAGE_BYTES) then
      more = true
      last = tonumber(entries[index - 1])
      break
    end
    table.insert(items, item)
  end
  return '{"networks":' .. json_list(items) .. ',"revision":' .. digits(last) .. ',"more":' .. tostring(more)
    .. ',"whole":false' .. let_go .. '}'
end

redis.register_function({
  function_name = 'volt1_network_changes',
  callback = readable(network_changes),
  flags = { 'no-writes' },
})
