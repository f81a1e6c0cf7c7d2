-- Which hosts have something of a network: leases, or a bridge with the gateway's address that is left of them. A host
-- is entered with its first grant, by the revision up to which it is known to have applied changes.
local HOSTS_PAGE = 500

local function hosts_key(root, network)
  return network_key(root, network) .. ':hosts'
end

local function hosts_field(network)
  return '#hosts:' .. network
end

-- False if hosts may be missing: the network is older than this list, or a part of the list has vanished.
local function knows_hosts(root, network)
  local counted = tonumber(redis.call('HGET', root .. ':leases', hosts_field(network)) or nil)
  return counted and redis.call('ZCARD', hosts_key(root, network)) >= counted
end

-- Enters all hosts, when it is not known which of them have something of a network.
local function suppose_all_hosts(root, network)
  local key = hosts_key(root, network)
  local from = '-'
  while from do
    local hosts = redis.call('ZRANGEBYLEX', root .. ':roster', from, '+', 'LIMIT', 0, HOSTS_PAGE)
    local scored = {}
    for _, host in ipairs(hosts) do
      table.insert(scored, 0)
      table.insert(scored, host)
    end
    if #hosts > 0 then
      redis.call('ZADD', key, 'NX', unpack(scored))
    end
    from = #hosts == HOSTS_PAGE and '(' .. hosts[#hosts]
  end
  redis.call('HSET', root .. ':leases', hosts_field(network), redis.call('ZCARD', key))
end

-- Begins the list of a new network: it has only hosts that have yet to let go of an earlier network of that name.
local function begin_hosts(root, network)
  if redis.call('HEXISTS', root .. ':leases', hosts_field(network)) == 0 then
    redis.call('HSET', root .. ':leases', hosts_field(network), redis.call('ZCARD', hosts_key(root, network)))
  end
end

local function forget_hosts(root, network)
  redis.call('DEL', hosts_key(root, network))
  redis.call('HDEL', root .. ':leases', hosts_field(network))
end

-- Enters a host that is about to have a lease in a network, whose changes it has applied up to `revision`.
local function enter_network(root, host, network, revision)
  if redis.call('HEXISTS', root .. ':leases', hosts_field(network)) == 0 then
    suppose_all_hosts(root, network)
  end
  local key = hosts_key(root, network)
  if redis.call('ZADD', key, 'NX', digits(revision), host) == 1 then
    keep_count(root, hosts_field(network), key, 1)
  end
end

-- Up to which revision a host has said that it has applied all changes.
local function applied_by(root, host)
  return tonumber(redis.call('HGET', root .. ':host:' .. host, 'applied') or 0) or 0
end

-- Enters a host in the networks for which it says that it has a bridge: it was forgotten, or the list was lost.
local function enter_bridges(root, host, networks)
  for _, network in ipairs(networks) do
    -- A deleted network with nothing to let go of is left out: the host hears of its deletion with the changes.
    if redis.call('ZSCORE', root .. ':networks', network)
      or redis.call('HEXISTS', root .. ':leases', hosts_field(network)) == 1 then
      enter_network(root, host, network, applied_by(root, host))
    end
  end
end

-- Whether any host with something of a network has yet to re-assert since the last loss.
local function is_yet_to_say(root, network)
  local epoch = digits(epoch_of(memory_of(root).generation))
  local hosts = knows_hosts(root, network) and hosts_key(root, network) or root .. ':roster'
  for _, host in ipairs(redis.call('ZRANGE', hosts, 0, -1)) do
    if redis.call('ZSCORE', root .. ':roster', host)
      and redis.call('HGET', root .. ':host:' .. host, 'asserted') ~= epoch then
      return true
    end
  end
  return false
end

-- The ids of the first leases of a network, `count` at most.
local function ids_in(root, network, count)
  local found = {}
  local hosts = knows_hosts(root, network) and hosts_key(root, network) or root .. ':roster'
  for _, host in ipairs(redis.call('ZRANGE', hosts, 0, -1)) do
    local entries = redis.call('ZRANGEBYLEX', ids_key(root, host),
      '[' .. network .. ' ', '(' .. network .. '!', 'LIMIT', 0, count - #found)
    for _, entry in ipairs(entries) do
      table.insert(found, string.sub(entry, #network + 2))
    end
    if #found == count then
      break
    end
  end
  return found
end
