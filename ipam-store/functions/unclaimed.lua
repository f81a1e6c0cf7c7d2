-- An empty ledger: one host asks its peers, on behalf of all, whether the fleet is new.

-- How long the others wait for the host that asks. Then another may ask: the first may reach none of its peers.
local ASK_MS = 2000

-- Whether a host has to ask its peers what they have seen.
local function is_asker(root, host, now)
  local memory = memory_of(root)
  local asker = memory.asker
  if not asker or now >= asker.since + ASK_MS or now < asker.since then
    asker = { host = host, since = now }
    memory.asker = asker
  end
  return asker.host == host
end
