-- build.lua: makes an image of a folder of pages, without Docker, and says what it is called by its digest.
--   neap run scripts/build.lua IMAGE FOLDER [BASE]
--   neap run scripts/build.lua shop/pages:2 ./site docker.io/library/nginx:1.27
-- The same files give the same image: a service that runs it is not rolled out again for nothing.

local image, folder, base = ...
assert(image and folder, "usage: neap run scripts/build.lua IMAGE FOLDER [BASE]")

local built = registry.build {
  image = image,
  from = base,
  copy = {
    -- Each is a layer of its own: what changes seldom comes first.
    { ["/etc/pages.json"] = { text = json.encode { cache = "1h" } } },
    { ["/usr/share/nginx/html"] = { path = folder, exclude = { ".git", "*.md" } } },
  },
  labels = { ["org.opencontainers.image.title"] = "pages" },
  expose = { 80 },
}
print(built.image)
-- service "pages" { image = built.image, ports = { http = "8080:80" } }:apply { wait = true }
