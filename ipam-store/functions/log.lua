-- The log of a network. An entry names an attachment whose lease was granted, changed or ended, or a revision of the
-- network. The function that makes the change writes it. The new state is read from the lease itself, so entries are
-- small, and a late reader reads what is true now.
--
-- A log never has a gap: if an entry cannot be appended, the log is deleted. No id of an entry comes twice, not even on
-- an emptied or older server: it is "generation-microseconds", the ledger's growing counter and the time, or one more
-- than the id before. So a reader that finds the last entry that it has read has missed nothing. A reader that does not
-- find it begins with a snapshot.
local MAX_LOG = '20000'
-- The field of an entry; its value is an attachment id, or a revision.
local CHANGED = 'id'
local EDITED = 'revision'

local function log_key(root, network)
  return root .. ':net:' .. network .. ':log'
end

local function write_entry(key, id, about, value)
  local added = redis.pcall('XADD', key, 'MAXLEN', '~', MAX_LOG, id, about, value)
  -- The caller may not write logs, the key is no log, or it has later ids of another server. The change itself is done.
  if type(added) == 'table' and added.err then
    redis.call('DEL', key)
  end
end

-- An id that sorts after the ids of grants: those have a generation of their own, and the plain time.
local function next_entry_id(root, now)
  local memory = memory_of(root)
  memory.logged = math.max(memory.logged + 1, now * 1000 + 1)
  local generation = memory.generation or tonumber(redis.call('HGET', root .. ':leases', GENERATION) or 0) or 0
  return digits(generation) .. '-' .. digits(memory.logged)
end

local function append(root, network, now, about, value)
  write_entry(log_key(root, network), next_entry_id(root, now), about, value)
end

-- The id of the last entry; '' if there is no log; '' and the error if it cannot be read.
local function log_position(root, network)
  local last = redis.pcall('XREVRANGE', log_key(root, network), '+', '-', 'COUNT', '1')
  return last[1] and last[1][1] or '', last.err and last
end
