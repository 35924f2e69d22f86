<#
.SYNOPSIS
Install or upgrade Stoker for this user, from the checkout that this file lies in. Needs no administrator.

.DESCRIPTION
The layout is that of install.sh: HOME\app\VERSION-ID is one complete Python environment, and stoker.cmd
names the one in use. A new one is built beside it; when it does not get well, the old one is used again.
Run it again to upgrade: models and settings stay.

.PARAMETER Model
Pull this model and ask it (default: starter, 98 MB).
.PARAMETER NoModel
Pull no model.
.PARAMETER NoStart
Do not start the daemon (one that runs is restarted all the same).
.PARAMETER NoAutostart
Do not start Stoker and its icon at login; an upgrade leaves that as it is.
.PARAMETER Prefix
Keep everything in this folder: program, models, settings, state.
.EXAMPLE
powershell -ExecutionPolicy Bypass -File installers\install.ps1
#>
[CmdletBinding()]
param(
    [string] $Model = 'starter',
    [switch] $NoModel,
    [switch] $NoStart,
    [switch] $NoAutostart,
    [string] $Prefix = ''
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$began = Get-Date

function Stop-Install([string] $Message, [string] $Next = '') {
    [Console]::Error.WriteLine("`nStoker was not installed: $Message")
    if ($Next) { [Console]::Error.WriteLine($Next) }
    exit 1
}

# --- where everything goes ---------------------------------------------------------------------

$source = Split-Path -Parent $PSScriptRoot
$about = Join-Path $source 'daemon\stoker\__init__.py'
if (-not (Test-Path $about)) {
    Stop-Install "this is not a checkout of Stoker: $source" 'Run install.ps1 from inside the folder that it came in.'
}
$version = [regex]::Match((Get-Content -Raw $about), '__version__ = "([^"]+)"').Groups[1].Value
if ($Prefix) {
    $base = [IO.Path]::GetFullPath((Join-Path (Get-Location) $Prefix))
    $env:STOKER_HOME = $base
} else {
    $base = Join-Path $env:LOCALAPPDATA 'Programs\Stoker'
}
$app = Join-Path $base 'app'
$log = Join-Path $app 'install.log'
$launcher = Join-Path $base 'stoker.cmd'
New-Item -ItemType Directory -Force $app | Out-Null
# Another environment's variables must not leak into this one.
foreach ($name in 'PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_USER', 'VIRTUAL_ENV') {
    Remove-Item "Env:$name" -ErrorAction SilentlyContinue
}
$env:PIP_DISABLE_PIP_VERSION_CHECK = '1'
$env:PIP_NO_INPUT = '1'

# --- helpers -----------------------------------------------------------------------------------

# Run a program with its output in the log; true when it ended well.
function Invoke-Logged([string] $Label, [string] $Program, [string[]] $Words) {
    $start = Get-Date
    if ($Label) { Write-Host "  $Label ..." }
    $previous = $ErrorActionPreference
    $ErrorActionPreference = 'Continue'   # what a program writes to stderr is no exception
    & $Program @Words 2>&1 | Out-File -Append -Encoding utf8 $log
    $code = $LASTEXITCODE
    $ErrorActionPreference = $previous
    if ($Label -and $code -eq 0) {
        Write-Host ("  {0}: done in {1:0} s" -f $Label, ((Get-Date) - $start).TotalSeconds)
    }
    return $code -eq 0
}

function Get-Python([string] $Folder) { Join-Path $Folder 'Scripts\python.exe' }
function Invoke-Stoker([string] $Folder, [string[]] $Words, [string] $Label = '') {
    return Invoke-Logged $Label (Get-Python $Folder) (@('-I', '-m', 'stoker') + $Words)
}
function Test-Works([string] $Folder) {
    return (Test-Path (Join-Path $Folder '.complete')) -and (Invoke-Stoker $Folder @('--version'))
}

# The only file that changes when another version comes into use.
function Set-Launcher([string] $Folder) {
    $lines = @('@rem stoker launcher')
    if ($Prefix) { $lines += '@if not defined STOKER_HOME set "STOKER_HOME=%~dp0."' }
    $lines += '@"%~dp0app\{0}\Scripts\python.exe" -I -m stoker %*' -f (Split-Path -Leaf $Folder)
    Set-Content -Encoding ascii "$launcher.new" $lines
    Move-Item -Force "$launcher.new" $launcher
}

function Get-Current {
    if (-not (Test-Path $launcher)) { return '' }
    $match = [regex]::Match((Get-Content -Raw $launcher), '%~dp0app\\([0-9A-Za-z.-]+)\\')
    if (-not $match.Success) { return '' }
    $folder = Join-Path $app $match.Groups[1].Value
    if (Test-Works $folder) { return $folder }
    return ''
}

function Find-Python {
    foreach ($candidate in @(@('py', '-3.13'), @('py', '-3.12'), @('py', '-3.11'), @('python'), @('python3'))) {
        if (-not (Get-Command $candidate[0] -ErrorAction SilentlyContinue)) { continue }
        $words = @($candidate | Select-Object -Skip 1) + @('-c', 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))')
        if (Invoke-Logged '' $candidate[0] $words) { return , $candidate }
    }
    Stop-Install 'Python 3.11 or newer is needed, and there is none here.' `
        "This command mends it; then run the installer again:`n    winget install Python.Python.3.13"
}

# --- build -------------------------------------------------------------------------------------

Set-Content -Encoding utf8 $log ''
$python = Find-Python
Write-Host "Installing Stoker $version for $env:USERNAME in $base"
$files = Get-ChildItem -Recurse -File (Join-Path $source 'daemon'), (Join-Path $source 'tray'), (Join-Path $source 'service_files'),
    (Join-Path $source 'pyproject.toml'), (Join-Path $source 'installers\requirements.lock') |
    Where-Object Extension -ne '.pyc' | Sort-Object FullName
$sums = ($files | ForEach-Object { (Get-FileHash -Algorithm SHA256 $_.FullName).Hash }) -join ''
$digest = [Security.Cryptography.SHA256]::Create().ComputeHash([Text.Encoding]::ASCII.GetBytes($sums))
$id = -join ($digest[0..4] | ForEach-Object { $_.ToString('x2') })
$previous = Get-Current
$new = Join-Path $app "$version-$id"
# A folder without .complete is what a killed installer left.
Get-ChildItem -Directory $app | Where-Object { -not (Test-Path (Join-Path $_.FullName '.complete')) } |
    Remove-Item -Recurse -Force -ErrorAction SilentlyContinue

if (Test-Works $new) {
    Write-Host '  the program: already there'
} else {
    $words = @($python | Select-Object -Skip 1) + @('-m', 'venv', $new)
    $pip = @('-I', '-m', 'pip', 'install')
    $locks = @('-r', (Join-Path $PSScriptRoot 'requirements.lock'), '-r', (Join-Path $PSScriptRoot 'build.lock'))
    $built = (Invoke-Logged '' $python[0] $words) -and
        (Invoke-Logged 'the libraries' (Get-Python $new) ($pip + @('--require-hashes') + $locks)) -and
        (Invoke-Logged 'the program' (Get-Python $new) ($pip + @('--no-deps', '--no-build-isolation', $source))) -and
        (Invoke-Stoker $new @('--version'))
    if (-not $built) {
        Get-Content -Tail 15 $log | ForEach-Object { [Console]::Error.WriteLine($_) }
        Remove-Item -Recurse -Force $new -ErrorAction SilentlyContinue
        Stop-Install 'its Python packages could not be installed.' "Check the network and pip's settings, then run it again. All output: $log"
    }
    Set-Content (Join-Path $new '.complete') ''
}

# --- switch ------------------------------------------------------------------------------------

$wasRunning = Invoke-Stoker $new @('status')
if ($previous -ne $new) {
    if ($wasRunning) { [void] (Invoke-Stoker $new @('stop') 'stopping the running daemon') }
    Set-Launcher $new
}
if ((-not $NoStart) -or $wasRunning) {
    if (-not (Invoke-Stoker $new @('start') 'starting the daemon')) {
        if ($previous -and $previous -ne $new) {
            [void] (Invoke-Stoker $new @('stop'))
            Set-Launcher $previous
            if ($wasRunning) { [void] (Invoke-Stoker $previous @('start')) }
            Remove-Item -Recurse -Force $new -ErrorAction SilentlyContinue
            Write-Host "The version before is in use again: $(Split-Path -Leaf $previous)."
        }
        Stop-Install 'the new daemon does not start.' "Its log: $log"
    }
}
$login = $false
if (-not $previous -and -not $NoAutostart) { $login = Invoke-Stoker $new @('autostart', 'on') }
else { [void] (Invoke-Stoker $new @('autostart', 'refresh')) }
if (-not $NoStart) {
    $tray = Join-Path $new 'Scripts\pythonw.exe'
    if ($previous) { [void] (Invoke-Logged '' (Get-Python $new) @('-I', '-m', 'stoker_tray', '--quit')) }
    Start-Process $tray -ArgumentList '-I', '-m', 'stoker_tray'
}
# Keep the one in use and the last good one.
Get-ChildItem -Directory $app | Where-Object { $_.FullName -ne $new -and $_.FullName -ne $previous } |
    Remove-Item -Recurse -Force -ErrorAction SilentlyContinue

# --- model and first question ------------------------------------------------------------------

if (-not $NoModel -and -not $NoStart) {
    & (Get-Python $new) -I -m stoker pull $Model
    if ($LASTEXITCODE -ne 0) { Stop-Install "the model $Model could not be pulled, but Stoker is there and runs." "Try again with: $launcher pull $Model" }
    & (Get-Python $new) -I -m stoker run $Model --temperature 0 --max-tokens 60 'What is the capital of France? Answer in one short sentence.'
}
Write-Host ("`nStoker {0} is installed ({1:0} s).`n" -f $version, ((Get-Date) - $began).TotalSeconds)
Write-Host '  Endpoint   http://127.0.0.1:4328/v1   (OpenAI-compatible; any API key will do)'
Write-Host "  Command    $launcher"
if ($login) { Write-Host "  Login      Stoker and its icon start at login; to undo: `"$launcher`" autostart off" }
