; Stoker for one Windows user: no administrator, no question that has a good answer already.
; Made by build.sh, which gives VERSION, ID, PAYLOAD (a folder), ICON, LICENCE and OUTFILE.
;
; Layout: $INSTDIR\app\ID is one complete Python with Stoker in it; stoker.cmd names the one in use.
; A new one is unpacked beside it and must get well before the old one goes; if it does not, the old
; one is in use again. Models and settings live elsewhere (%LOCALAPPDATA%\stoker).
;
;   /S            ask and show nothing          /AUTOSTART=0  do not start at login
;   /START=0      do not start anything         /D=FOLDER     install there (must be the last)
; The uninstaller takes /S and /PURGE=1 (models and settings, too).

Unicode true
Target amd64-unicode
!include "MUI2.nsh"
!include "FileFunc.nsh"
!include "LogicLib.nsh"

Name "Stoker"
OutFile "${OUTFILE}"
RequestExecutionLevel user
InstallDir "$LOCALAPPDATA\Programs\Stoker"
InstallDirRegKey HKCU "Software\Stoker" "InstallDir"
!ifdef FAST
  SetCompressor zlib
!else
  SetCompressor /SOLID lzma
!endif
BrandingText "Stoker ${VERSION}"
VIProductVersion "${VERSION}.0"
VIAddVersionKey "ProductName" "Stoker"
VIAddVersionKey "FileDescription" "Stoker Setup"
VIAddVersionKey "FileVersion" "${VERSION}"
VIAddVersionKey "ProductVersion" "${VERSION}"
VIAddVersionKey "LegalCopyright" "Stoker contributors, Apache-2.0"
!define UNINSTALL "Software\Microsoft\Windows\CurrentVersion\Uninstall\Stoker"
!define HERE "$INSTDIR\app\${ID}"
!define PYTHON '"${HERE}\python\python.exe" -I -m'
!define MUI_ICON "${ICON}"
!define MUI_UNICON "${ICON}"
!define MUI_FINISHPAGE_TEXT "Stoker runs in the background; its icon is in the notification area.$\r$\n$\r$\nAny program that speaks the OpenAI API can use it at http://127.0.0.1:4328/v1"

!insertmacro MUI_PAGE_WELCOME
!insertmacro MUI_PAGE_LICENSE "${LICENCE}"
!insertmacro MUI_PAGE_COMPONENTS
!insertmacro MUI_PAGE_INSTFILES
!insertmacro MUI_PAGE_FINISH
!insertmacro MUI_UNPAGE_CONFIRM
!insertmacro MUI_UNPAGE_COMPONENTS
!insertmacro MUI_UNPAGE_INSTFILES
!insertmacro MUI_LANGUAGE "English"

Var Old     ; the ID that was in use before; empty at a first install
Var Start   ; 0 when nothing shall be started
Var Result

; --- helpers ------------------------------------------------------------------------------------

; The launchers: the only files that change when another version comes into use. The folder is
; written as %~dp0, so that a name with signs of the shell's own does no harm.
; A program that has just ended, or a virus scanner, may hold a file for a moment.
!macro RemoveFolder Folder
  ${For} $R9 1 10
    RMDir /r "${Folder}"
    ${IfNot} ${FileExists} "${Folder}\*.*"
      ${ExitFor}
    ${EndIf}
    Sleep 300
  ${Next}
!macroend

!macro Launcher NAME MODULE WHICH
  FileOpen $0 "$INSTDIR\${NAME}.new" w
  FileWrite $0 '@rem stoker launcher$\r$\n@"%~dp0app\${WHICH}\python\python.exe" -I -m ${MODULE} %*$\r$\n'
  FileClose $0
  Delete "$INSTDIR\${NAME}"
  Rename "$INSTDIR\${NAME}.new" "$INSTDIR\${NAME}"
!macroend

!macro Use WHICH
  !insertmacro Launcher "stoker.cmd" "stoker" "${WHICH}"
  WriteRegStr HKCU "Software\Stoker" "Current" "${WHICH}"
!macroend

; Run a command of the version WHICH without a window; $Result is its exit code, or "error".
!macro Run WHICH WORDS
  nsExec::ExecToLog '"$INSTDIR\app\${WHICH}\python\python.exe" -I -m ${WORDS}'
  Pop $Result
!macroend

; --- install ------------------------------------------------------------------------------------

Section "Stoker" SecMain
  SectionIn RO
  ReadRegStr $Old HKCU "Software\Stoker" "Current"
  ${IfNot} ${FileExists} "$INSTDIR\app\$Old\python\python.exe"
    StrCpy $Old ""
  ${EndIf}
  ${If} $Old == "${ID}"
    !insertmacro Run "$Old" "stoker stop"
    !insertmacro Run "$Old" "stoker_tray --quit"
  ${EndIf}
  SetOutPath "${HERE}"
  File /r "${PAYLOAD}\*.*"
  SetOutPath "$INSTDIR"   ; else the last folder of the payload stays in use

  !insertmacro Run "${ID}" "stoker --version"
  ${If} $Result != "0"
    DetailPrint "The new version does not run (code $Result); nothing was changed."
    Goto failed
  ${EndIf}
  ${If} $Old != ""
  ${AndIf} $Old != "${ID}"
    !insertmacro Run "$Old" "stoker stop"
    !insertmacro Run "$Old" "stoker_tray --quit"
  ${EndIf}
  !insertmacro Use "${ID}"
  ${If} $Start != "0"
    !insertmacro Run "${ID}" "stoker start"
    ${If} $Result != "0"
      DetailPrint "The new version does not start (code $Result)."
      Goto failed
    ${EndIf}
  ${EndIf}
  Goto done

failed:
  ${If} $Old != ""
  ${AndIf} $Old != "${ID}"
    !insertmacro Use "$Old"
    !insertmacro RemoveFolder "${HERE}"
    ${If} $Start != "0"
      !insertmacro Run "$Old" "stoker start"
      Exec '"$INSTDIR\app\$Old\python\pythonw.exe" -I -m stoker_tray'
    ${EndIf}
    MessageBox MB_ICONEXCLAMATION|MB_OK "The new version of Stoker did not get well. The version before is in use again." /SD IDOK
  ${ElseIf} $Old == ""
    Delete "$INSTDIR\stoker.cmd"
    SetOutPath "$TEMP"   ; the folder in use cannot be removed
    !insertmacro RemoveFolder "$INSTDIR\app"
    RMDir "$INSTDIR"
    DeleteRegKey HKCU "Software\Stoker"
    MessageBox MB_ICONSTOP|MB_OK "Stoker does not run on this computer, and was not installed." /SD IDOK
  ${EndIf}
  SetErrorLevel 2
  Quit

done:
  ; Keep the one in use only; what is still open stays until the next time.
  ${If} $Old != ""
  ${AndIf} $Old != "${ID}"
    !insertmacro RemoveFolder "$INSTDIR\app\$Old"
  ${EndIf}
  File "/oname=stoker.ico" "${ICON}"
  WriteUninstaller "$INSTDIR\uninstall.exe"
  WriteRegStr HKCU "Software\Stoker" "InstallDir" "$INSTDIR"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayName" "Stoker"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayIcon" "$INSTDIR\stoker.ico"
  WriteRegStr HKCU "${UNINSTALL}" "Publisher" "Stoker contributors"
  WriteRegStr HKCU "${UNINSTALL}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegStr HKCU "${UNINSTALL}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
  WriteRegDWORD HKCU "${UNINSTALL}" "NoModify" 1
  WriteRegDWORD HKCU "${UNINSTALL}" "NoRepair" 1
  ${GetSize} "$INSTDIR" "/S=0K" $0 $1 $2
  IntFmt $0 "0x%08X" $0
  WriteRegDWORD HKCU "${UNINSTALL}" "EstimatedSize" "$0"
  CreateDirectory "$SMPROGRAMS\Stoker"
  CreateShortcut "$SMPROGRAMS\Stoker\Stoker.lnk" "${HERE}\python\pythonw.exe" "-I -m stoker_tray" "$INSTDIR\stoker.ico"
  CreateShortcut "$SMPROGRAMS\Stoker\Remove Stoker.lnk" "$INSTDIR\uninstall.exe"
  ; What starts at login names the version: an upgrade writes anew what is on, and no more.
  ${If} $Old != ""
    !insertmacro Run "${ID}" "stoker autostart refresh"
  ${EndIf}
SectionEnd

Section "Start Stoker and its icon when I sign in" SecLogin
  ${If} $Old == "" ; at an upgrade it stays as it is
    !insertmacro Run "${ID}" "stoker autostart on"
    ${If} $Result == "0"
      DetailPrint "Stoker starts when you sign in; its icon's menu ends that."
    ${EndIf}
  ${EndIf}
SectionEnd

Section "-Icon"
  ${If} $Start != "0"
    Exec '"${HERE}\python\pythonw.exe" -I -m stoker_tray'
  ${EndIf}
SectionEnd

Function .onInit
  ${GetParameters} $R0
  ClearErrors
  ${GetOptions} $R0 "/AUTOSTART=" $R1
  ${If} $R1 == "0"
    !insertmacro UnselectSection ${SecLogin}
  ${EndIf}
  StrCpy $Start "1"
  ClearErrors
  ${GetOptions} $R0 "/START=" $R1
  ${If} $R1 == "0"
    StrCpy $Start "0"
  ${EndIf}
FunctionEnd

; --- remove -------------------------------------------------------------------------------------

Section "un.Stoker" UnMain
  SectionIn RO
  ReadRegStr $Old HKCU "Software\Stoker" "Current"
  ${If} $Old != ""
    !insertmacro Run "$Old" "stoker autostart off"
    !insertmacro Run "$Old" "stoker_tray --quit"
    !insertmacro Run "$Old" "stoker stop"
  ${EndIf}
  ; By name: a folder that somebody chose may hold other things.
  !insertmacro RemoveFolder "$INSTDIR\app"
  Delete "$INSTDIR\stoker.cmd"
  Delete "$INSTDIR\stoker.ico"
  Delete "$INSTDIR\uninstall.exe"
  RMDir "$INSTDIR"
  RMDir /r "$SMPROGRAMS\Stoker"
  DeleteRegKey HKCU "${UNINSTALL}"
  DeleteRegKey HKCU "Software\Stoker"
SectionEnd

Section /o "un.Models, settings and logs, too" UnData
  !insertmacro RemoveFolder "$LOCALAPPDATA\stoker"
SectionEnd

Function un.onInit
  ${GetParameters} $R0
  ClearErrors
  ${GetOptions} $R0 "/PURGE=" $R1
  ${If} $R1 == "1"
    !insertmacro SelectSection ${UnData}
  ${EndIf}
FunctionEnd
