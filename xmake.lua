-- Builds libinfinicore_infer and its C++ tests.
--   xmake f -m release|debug [--infinicore=y|n|headers] [--sanitizer=address|thread]   configure
--   xmake                                    build the library, and the InfiniCore module where its headers are
--   xmake build -g tests                     build the C++ tests
--   xmake build -g fake                      build the fake accelerator that tests put in InfiniCore's place
--   xmake install -o PREFIX infinicore_infer install library, headers and pkg-config file
set_project("infinicore_infer")
set_languages("cxx17", "c99")
set_warnings("all", "extra", "error")
add_rules("mode.release", "mode.debug")

option("infinicore")
    set_showmenu(true)
    set_default("auto")
    set_values("auto", "y", "n", "headers")
    set_description("Build the module of the InfiniCore backend",
                    "auto: if InfiniCore's headers are in INFINI_ROOT/include or .infini/include",
                    "headers: the module is for other machines and does not look for this machine's InfiniCore")
option_end()

option("sanitizer")
    set_showmenu(true)
    set_default("none")
    set_values("none", "address", "thread")
    set_description("address (with undefined-behaviour checks) or thread")
option_end()

local function infini_root()
    local root = os.getenv("INFINI_ROOT")
    if not root or root == "" then
        root = path.join(os.projectdir(), ".infini")
    end
    return root
end

local sanitizer = get_config("sanitizer") or "none"
-- A wheel takes the library's objects from xmake's cache, also where the variable CI is set, which otherwise has xmake
-- use none. Nobody compiles for a sanitizer twice.
set_policy("build.ccache", sanitizer == "none")
local root = infini_root()
local wish = tostring(get_config("infinicore"))  -- y and n arrive as booleans
local found = os.isfile(path.join(root, "include", "infiniop.h"))
local with_infinicore = wish ~= "false" and wish ~= "n" and (wish ~= "auto" or found)

-- Reports of sanitizers name functions and lines, for which -g1 suffices: all of -g takes compilers 1.7 times as long.
if sanitizer == "address" then
    add_cxflags("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1", {force = true})
    add_ldflags("-fsanitize=address,undefined", {force = true})
    add_shflags("-fsanitize=address,undefined", {force = true})
elseif sanitizer == "thread" then
    add_cxflags("-fsanitize=thread", "-fno-omit-frame-pointer", "-O1", "-g1", {force = true})
    add_ldflags("-fsanitize=thread", {force = true})
    add_shflags("-fsanitize=thread", {force = true})
end

-- Contracting a * b + c into one rounding would make results depend on the compiler; kernels ask for it explicitly.
add_cxflags("-ffp-contract=off", {force = true})
add_includedirs("include", "src")

-- The InfiniCore backend: compiled with its headers, linked to nothing of it (src/ops/infinicore/device/library.cpp).
rule("infinicore_user")
    on_load(function(target)
        target:add("sysincludedirs", path.join(root, "include"))
        if wish ~= "headers" then
            target:add("rpathdirs", path.join(root, "lib"))
        end
    end)
rule_end()

-- What is loaded into other people's programs has the C++ library linked in where the compiler has it to link. Then a
-- thread has from its start what exceptions need: in a C++ library that a program loads with dlopen, the dynamic loader
-- allocates it at a thread's first exception, and ends the process when there is no memory. Symbols are bound at once
-- for the same reason. Nothing of C++ crosses the boundaries, so programs may use another C++ library.
rule("own_cxx_library")
    on_config(function(target)
        if sanitizer ~= "none" then
            return
        end
        target:add("shflags", "-Wl,-z,now", {force = true})
        local file = try { function() return os.iorunv(target:tool("cxx"), {"-print-file-name=libstdc++.a"}) end }
        if file and path.is_absolute(file:trim()) and os.isfile(file:trim()) then
            target:add("shflags", "-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", {force = true})
        end
    end)
rule_end()

-- Everything but the C API, compiled once and shared by the library and the C++ tests, which see internals.
target("q3_core")
    set_kind("static")
    set_symbols("hidden")
    set_default(false)
    add_cxflags("-fPIC", "-fvisibility=hidden", {force = true})
    if is_mode("release") then
        set_optimize("fastest")
    end
    add_files("src/runtime/*.cpp", "src/engine/*.cpp", "src/model/*.cpp", "src/ops/*.cpp", "src/ops/module/*.cpp")
    add_files("src/ops/cpu/*.cpp", "src/ops/cpu/pack/*.cpp", "src/ops/cpu/kernels/*.cpp|isa_*.cpp")
    if is_arch("x86_64", "x64", "i386") then
        local avx2 = {"-mavx2", "-mfma", "-mf16c"}
        -- With a sanitizer, kernels take compilers four times as long with -O1 as with this, and tests no less time.
        if sanitizer ~= "none" then
            table.insert(avx2, "-O0")
        end
        local avx512 = table.join(avx2, {"-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"})
        add_files("src/ops/cpu/kernels/isa_avx2.cpp", "src/ops/cpu/kernels/isa_avx2_affine.cpp", {cxflags = avx2})
        add_files("src/ops/cpu/kernels/isa_avxvnni.cpp", {cxflags = table.join(avx2, {"-mavxvnni"})})
        -- ThreadSanitizer does without AVX-512, which takes the longest to compile: work is divided over threads by the
        -- same code for every table.
        if sanitizer == "thread" then
            add_defines("Q3_WITHOUT_AVX512")
        else
            -- GCC 12 warns of its own headers: their "undefined" vectors are meant to be so.
            avx512 = table.join(avx512, {"-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"})
            add_files("src/ops/cpu/kernels/isa_avx512.cpp", "src/ops/cpu/kernels/isa_avx512_affine.cpp", {cxflags = avx512})
            add_files("src/ops/cpu/kernels/isa_avx512vnni.cpp", "src/ops/cpu/kernels/isa_avx512vnni_affine.cpp", {cxflags = table.join(avx512, {"-mavx512vnni"})})
            add_files("src/ops/cpu/kernels/isa_avx512bf16.cpp", {cxflags = table.join(avx512, {"-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"})})
            add_files("src/ops/cpu/kernels/isa_avx512amx.cpp",
                      {cxflags = table.join(avx512, {"-mavx512vnni", "-mavx512bf16", "-mavx512vbmi", "-mamx-tile", "-mamx-int8", "-mamx-bf16"})})
        end
    elseif is_arch("arm64", "arm64-v8a", "aarch64") then
        add_files("src/ops/cpu/kernels/isa_neon.cpp", "src/ops/cpu/kernels/isa_neon_affine.cpp")
        add_files("src/ops/cpu/kernels/isa_neon_dotprod.cpp", "src/ops/cpu/kernels/isa_neon_dotprod_affine.cpp", {cxflags = "-march=armv8.2-a+dotprod"})
        add_files("src/ops/cpu/kernels/isa_neon_i8mm.cpp", {cxflags = "-march=armv8.2-a+dotprod+i8mm"})
    end
    add_syslinks("pthread", "dl", {public = true})
target_end()

-- Flags of a module: one symbol goes out, nothing of the process comes in but system libraries.
local function module_target()
    set_kind("shared")
    add_rules("own_cxx_library")
    if is_mode("release") then
        set_optimize("fastest")
    end
    add_cxflags("-fvisibility=hidden", "-fvisibility-inlines-hidden", {force = true})
    add_shflags("-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic",
                "-Wl,--version-script=" .. path.join(os.projectdir(), "src", "ops", "module", "exports.map"), {force = true})
    if sanitizer == "none" then
        add_shflags("-Wl,-z,defs", {force = true})
    end
end

if with_infinicore then
    target("q3_infinicore")
        set_kind("static")
        set_symbols("hidden")
        set_default(false)
        add_cxflags("-fPIC", "-fvisibility=hidden", {force = true})
        if is_mode("release") then
            set_optimize("fastest")
        end
        add_files("src/ops/infinicore/**.cpp|module.cpp")
        add_deps("q3_core")
        add_rules("infinicore_user")
    target_end()

    target("infinicore_infer_infini")
        module_target()
        add_files("src/ops/infinicore/module.cpp")
        add_deps("q3_infinicore", "q3_core")
        add_rules("infinicore_user")
    target_end()
end

-- The C API for programs that have all code linked in.
target("q3_api")
    set_kind("static")
    set_default(false)
    add_deps("q3_core")
    add_files("src/api/*.cpp")
target_end()

target("infinicore_infer")
    set_kind("shared")
    add_rules("own_cxx_library")
    add_deps("q3_core")
    if with_infinicore then
        add_deps("infinicore_infer_infini", {inherit = false})  -- built with it, not linked
    end
    add_files("src/api/*.cpp")
    if is_mode("release") then
        set_optimize("fastest")
    end
    add_cxflags("-fvisibility=hidden", "-fvisibility-inlines-hidden", {force = true})
    add_shflags("-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic",
                "-Wl,--version-script=" .. path.join(os.projectdir(), "src", "api", "exports.map"), {force = true})
    add_headerfiles("include/(infinicore_infer.h)", "include/(infinicore_infer/models/*.h)")
    on_load(function(target)
        -- The header states the version; names of files and what is installed beside them follow it.
        local header = io.readfile(path.join(os.projectdir(), "include", "infinicore_infer", "models", "qwen3.h"))
        local version = header:match('#define QWEN3_VERSION_STRING "(%d+%.%d+%.%d+)"')
        local soname = "libinfinicore_infer.so." .. version:match("%d+")
        target:set("version", version)
        target:data_set("soname", soname)
        target:add("shflags", "-Wl,-soname," .. soname, {force = true})
    end)
    after_build(function(target)
        local link = path.join(target:targetdir(), target:data("soname"))
        os.tryrm(link)
        os.ln("libinfinicore_infer.so", link)
    end)
    after_install(function(target)
        local prefix = target:installdir()
        local lib = path.join(prefix, "lib")
        local version, soname = target:version(), target:data("soname")
        local file = "libinfinicore_infer.so." .. version
        os.mv(path.join(lib, "libinfinicore_infer.so"), path.join(lib, file))
        os.tryrm(path.join(lib, soname))
        os.ln(file, path.join(lib, soname))
        os.ln(soname, path.join(lib, "libinfinicore_infer.so"))
        if with_infinicore then
            os.cp(path.join(target:targetdir(), "libinfinicore_infer_infini.so"), lib)
        end
        local function write(name, text)
            local values = {PREFIX = path.absolute(prefix), VERSION = version, MAJOR = version:match("%d+"),
                            FILE = file, SONAME = soname}
            io.writefile(path.join(lib, name), (text:gsub("@(%u+)@", values)))
        end
        write("pkgconfig/infinicore_infer.pc", [[
prefix=@PREFIX@
libdir=${prefix}/lib
includedir=${prefix}/include

Name: infinicore_infer
Description: Run Qwen3 dense models from C
Version: @VERSION@
Libs: -L${libdir} -linfinicore_infer
Cflags: -I${includedir}
]])
        write("cmake/infinicore_infer/infinicore_infer-config.cmake", [[
get_filename_component(_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET infinicore_infer::infinicore_infer)
  add_library(infinicore_infer::infinicore_infer SHARED IMPORTED)
  set_target_properties(infinicore_infer::infinicore_infer PROPERTIES
    IMPORTED_LOCATION "${_prefix}/lib/@FILE@"
    IMPORTED_SONAME "@SONAME@"
    INTERFACE_INCLUDE_DIRECTORIES "${_prefix}/include")
endif()
]])
        write("cmake/infinicore_infer/infinicore_infer-config-version.cmake", [[
set(PACKAGE_VERSION "@VERSION@")
if(PACKAGE_FIND_VERSION VERSION_LESS_EQUAL PACKAGE_VERSION AND PACKAGE_FIND_VERSION_MAJOR EQUAL @MAJOR@)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
]])
    end)
target_end()

-- C++ tests see the internals; C tests use the public header only, linked statically so that sanitizers see all code.
for _, pattern in ipairs({"test_*.cpp", "test_*.c"}) do
    for _, file in ipairs(os.files(path.join(os.projectdir(), "test", "cpp", pattern))) do
        local name = path.basename(file)
        if with_infinicore or name ~= "test_infinicore_ops" then
            target(name)
                set_kind("binary")
                set_group("tests")
                set_default(false)
                add_files(file)
                if pattern == "test_*.c" then
                    add_deps("q3_api")
                end
                if name == "test_infinicore_ops" then
                    add_deps("q3_infinicore")
                    add_rules("infinicore_user")
                    add_syslinks("gomp")
                end
                add_deps("q3_core")
                add_syslinks("m")
            target_end()
        end
    end
end

-- test/faults: a library for LD_PRELOAD that makes system calls fail, and what is done to the library meanwhile.
-- Sanitizers have an allocator of their own.
if sanitizer == "none" then
    target("q3_inject")
        set_kind("shared")
        set_group("tests")
        set_default(false)
        add_files("test/faults/inject.c")
        add_syslinks("dl")
    target_end()

    target("q3_fault_driver")
        set_kind("shared")
        set_group("tests")
        set_default(false)
        add_deps("infinicore_infer")
        add_files("test/faults/*.c|inject.c")
        add_rpathdirs("$ORIGIN")
        add_syslinks("dl", "m", "pthread")
    target_end()
end

-- A fake accelerator with InfiniCore's C API: tests put its folder into INFINI_ROOT. "fake" has that of 0.1.0;
-- "fake_newer" that of InfiniCore's main as test/fake_device/include declares it, and a module compiled against that.
if with_infinicore then
    local variants = {fake = path.join(root, "include"), fake_newer = "test/fake_device/include"}
    for variant, headers in pairs(variants) do
        for _, name in ipairs({"infinirt", "infiniop", "infiniccl"}) do
            target(variant .. "_" .. name)
                set_kind("shared")
                set_group("fake")
                set_default(false)
                set_basename(name)
                set_optimize("fastest")
                set_targetdir("$(builddir)/$(plat)/$(arch)/$(mode)/" .. variant .. "/lib")
                add_cxflags("-fvisibility=hidden", {force = true})
                add_sysincludedirs(headers)
                add_files("test/fake_device/" .. name .. (name == "infinirt" and "/*.cpp" or ".cpp"))
                add_shflags("-Wl,-soname,lib" .. name .. ".so", "-Wl,-z,defs", {force = true})
                if name == "infinirt" then
                    add_syslinks("pthread")
                else
                    add_deps(variant .. "_infinirt")
                end
            target_end()
        end
    end

    target("fake_newer_module")
        module_target()
        set_group("fake")
        set_default(false)
        set_basename("infinicore_infer_infini")
        set_targetdir("$(builddir)/$(plat)/$(arch)/$(mode)/fake_newer")
        add_files("src/ops/infinicore/**.cpp")
        add_deps("q3_core")
        add_sysincludedirs("test/fake_device/include")
    target_end()
end

-- A module whose backend is the CPU's, with failures on request: what tests of the seam load. Needs no InfiniCore.
target("fake_module")
    module_target()
    set_group("fake")
    set_default(false)
    set_basename("infinicore_infer_infini")
    set_targetdir("$(builddir)/$(plat)/$(arch)/$(mode)/fake_module")
    add_files("test/fake_module/*.cpp")
    add_deps("q3_core")
target_end()

-- Single kernels.
target("bench_kernels")
    set_kind("binary")
    set_group("bench")
    set_default(false)
    add_files("test/bench/kernels.cpp")
    add_deps("q3_core")
target_end()

-- Kernels of few rows on weights from memory, all threads together.
target("bench_streams")
    set_kind("binary")
    set_group("bench")
    set_default(false)
    add_files("test/bench/streams.cpp")
    add_deps("q3_core")
target_end()

-- How a step's work divides over threads.
target("bench_scaling")
    set_kind("binary")
    set_group("bench")
    set_default(false)
    add_files("test/bench/scaling.cpp")
    add_deps("q3_api")
target_end()

-- Measures the machine for qwen3-bench.
if is_arch("x86_64", "x64") then
    target("bench_machine")
        set_kind("binary")
        set_group("bench")
        set_default(false)
        set_optimize("fastest")
        -- GCC 12 warns of its own headers, as above.
        add_files("test/bench/machine.cpp", {cxflags = {"-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"}})
        add_syslinks("pthread")
    target_end()
end
